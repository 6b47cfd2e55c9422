"""Grid files: what they say, what is wrong with one, and that ours can be trained and fitted."""

import statistics

import pytest

from cs336.cli import main as cli
from cs336.files import UserError
from cs336.scaling.grid import GRIDS, find_grid, problems, profiles, read_grid
from cs336.scaling.plan import Rate, plan_lines, shapes
from cs336.scaling.recipe import config_hash, real_flops
from cs336.scaling.runs import MEASURED_RUNS, read_runs

GRID = """
name = "mine"
version = 1
unique_tokens = 100_000_000
max_epochs = 2.0
max_steps = 2_000
expected_optimum = [2.77, 0.42]

[[groups]]
budgets = [1e14]
shapes = ["128x2x2", "192x2x3", "192x3x3", "256x4x4", "320x5x5"]
batch_sizes = [128, 256]
"""


def written(folder, text=GRID):
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in GRIDS.glob("*.toml")))
def test_our_grids_have_no_problems(name):
    grid = find_grid(name)
    assert grid.name == name and problems(grid) == []


def test_the_grid_for_one_gpu_is_what_was_asked_for():
    grid = find_grid("h100")
    cells = list(grid.cells().values())
    assert len(cells) >= 150
    assert max(cell.tokens for cell in cells) <= 4 * grid.unique_tokens
    complete = profiles(grid)
    for budget in (1e13, 3e13, 6e13, 1e14, 3e14, 6e14, 1e15):
        assert len({cell.parameters for cell in complete[budget, 128]}) >= 5
        assert all(cell.learning_rate == float(f"{2 / cell.d_model:.3g}") for cell in complete[budget, 128])
        for batch_size in (128, 256):
            alike = [cell for cell in cells if (cell.batch_size, cell.learning_rate) == (batch_size, 1e-3)]
            assert len({cell.parameters for cell in alike if cell.compute_budget == budget}) >= 5
    for budget in (3e15, 6e15):
        assert (budget, 128) not in complete, "marked as one-sided"
        assert len({cell.parameters for cell in cells if cell.compute_budget == budget}) >= 5
    for budget in (1e13, 3e13, 6e13, 1e14, 3e14):
        assert len({cell.learning_rate for cell in cells if cell.compute_budget == budget}) >= 3
    assert Rate().elapsed(cells, packed=3) < 55 * 60
    assert any(not cell.steps for cell in cells) and any(cell.seed for cell in cells)


def test_the_full_grid_covers_the_services_range():
    grid = find_grid("full")
    cells = list(grid.cells().values())
    budgets = {float(f"{digit}e{power}") for power in range(13, 18) for digit in (1, 3, 6)} | {1e18}
    assert {cell.compute_budget for cell in cells} == budgets == {budget for budget, _ in profiles(grid)}
    assert {cell.batch_size for cell in cells} == {128, 256}
    assert all(64 <= cell.d_model <= 1_024 and 2 <= cell.num_layers <= 24 for cell in cells)
    assert all(2 <= cell.num_heads <= 16 and 1e-4 <= cell.learning_rate <= 1e-3 for cell in cells)
    for budget in sorted(budgets):
        if budget <= 1e15:
            assert len({cell.learning_rate for cell in cells if cell.compute_budget == budget}) >= 4
    assert max(cell.tokens for cell in cells) <= grid.unique_tokens, "no token is read twice"
    (final,) = find_grid("final").cells().values()
    assert final.compute_budget == 1e19 and 2e8 < final.parameters < 2.3e8 and final.tokens > 7e9


def test_a_cell_that_two_groups_ask_for_is_trained_once(tmp_path):
    grid = read_grid(written(tmp_path, GRID + '\n[[groups]]\nbudgets = [1e14]\nshapes = ["192x3x3", "448x7x7"]\n'))
    assert len(grid.cells()) == 11 and len(list(grid.cells_by_group())) == 12
    assert next(iter(grid.cells())) == "1e14-128x2x2-b128-lr0.001"


TOO_WIDE = "aspect ratio 512 is not within 32 and 128; mark its group as a probe"
TOO_FEW = "profile 1e+14 at batch 128: 4 sizes, needs 5; add shapes, or say why in one_sided"
NONE_BELOW = "profile 1e+12 at batch 128: no size below the expected minimum at 3.04e+05; add smaller shapes"
NONE_ABOVE = "profile 3e+15 at batch 128: no size above the expected minimum at 8.77e+06; add larger shapes"
TOO_OFTEN = "1e14-128x2x2-b128-lr0.001: reads the text 0.42 times, more than 0.4; take a larger size"
TOO_LONG = "1e14-128x2x2-b128-lr0.001: 646 steps, more than 600; take a larger size or batch"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"320x5x5"]', '"2048x4x16"]', f"2048x4x16: {TOO_WIDE}"),
        ('"320x5x5"]', '"320x5x2"]', "320x5x2: head size 160 is not within 32 and 128; mark its group as a probe"),
        ('"320x5x5"]', '"192x3x3"]', TOO_FEW),
        ("[1e14]", "[1e12]", NONE_BELOW),
        ("[1e14]", "[3e15]", NONE_ABOVE),
        ("max_epochs = 2.0", "max_epochs = 0.4", TOO_OFTEN),
        ("max_steps = 2_000", "max_steps = 600", TOO_LONG),
    ],
)
def test_each_problem_is_one_line(tmp_path, old, new, line):
    assert problems(read_grid(written(tmp_path))) == []
    found = problems(read_grid(written(tmp_path, GRID.replace(old, new))))
    assert line in found
    assert all("\n" not in each for each in found) and len(found) == len(set(found))


def test_a_probe_and_a_one_sided_profile_are_excused(tmp_path):
    probe = GRID + '\n[[groups]]\nbudgets = [1e14]\nshapes = ["320x5x1"]\nprobe = true\n'
    assert problems(read_grid(written(tmp_path, probe))) == []
    few = GRID + '\n[[groups]]\nbudgets = [3e14]\nshapes = ["320x5x5"]\n'
    assert len(problems(read_grid(written(tmp_path, few)))) == 1
    assert problems(read_grid(written(tmp_path, few + 'one_sided = "one run alone"\n'))) == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("version = 1", "version = ", "not valid TOML"),
        ("[[groups]]", "[groups]", r"has no \[\[groups\]\]"),
        ("version = 1", "", r"mine\.toml: lacks version"),
        ("budgets = [1e14]", "", "group 1: lacks budgets"),
        ("budgets", "budget", "group 1: has no setting 'budget'; there are budgets, shapes"),
        ("[1e14]", "1e14", "group 1: budgets is a list of a number, got"),
        ("[1e14]", "[inf]", "group 1: budgets is a list of a number, got"),
        ("[1e14]", "[0]", "are above 0, got 0.001 and 0.0"),
        ("[128, 256]", "[128, true]", "group 1: batch_sizes is a list of a whole number, got"),
        ('"320x5x5"', '"320-5-5"', "a shape is written d_modelxlayersxheads"),
        ('"320x5x5"', '"320x5x6"', "num_heads must divide d_model"),
        ("max_epochs = 2.0", 'max_epochs = "two"', "max_epochs is a number, got 'two'"),
        ("[2.77, 0.42]", "[2.77]", "a coefficient and an exponent"),
        ("version = 1", 'version = 1\nprecision = "fp8"', "precision is float32 or bfloat16"),
    ],
)
def test_a_file_with_a_mistake_is_one_line(tmp_path, old, new, line):
    with pytest.raises(UserError, match=line) as caught:
        read_grid(written(tmp_path, GRID.replace(old, new)))
    assert "\n" not in str(caught.value) and "mine.toml" in str(caught.value)


def test_a_grid_that_is_not_there_names_those_that_are():
    with pytest.raises(UserError, match=r"nope: no such grid; there are check, final, full, h100, tiny, tiny_check"):
        find_grid("nope")


def test_the_plan_adds_up(tmp_path):
    grid = read_grid(written(tmp_path))
    cells = list(grid.cells().values())
    lines = plan_lines(grid, cells=True)
    assert lines[0] == "grid mine, version 1: 10 runs of 10 shapes and batches"
    assert sum(line.startswith("1e14-") for line in lines) == 10
    assert any(f"{sum(map(real_flops, cells)):.2e} real FLOPs" in line for line in lines)


def test_runs_take_what_the_plan_expects():
    """By the rows that come with the package; a run that others shared the device with took its share."""
    cells = {config_hash(cell, "008c68533cae33ad"): cell for cell in find_grid("h100").cells().values()}
    ratios = [
        Rate().seconds(cells[run.config_hash]) / (run.wall_seconds / run.packed)
        for run in read_runs(MEASURED_RUNS)
        if run.config_hash in cells and run.wall_seconds > 5
    ]
    assert len(ratios) > 150 and statistics.median(ratios) == pytest.approx(1.0, abs=0.05)
    assert sum(abs(ratio - 1) < 0.2 for ratio in ratios) > 0.9 * len(ratios)


def test_packing_hides_what_the_host_does_but_not_the_devices_work():
    rate = Rate(
        flops_per_second=1e14,
        tokens_per_second=1e7,
        entries_per_second=1e9,
        seconds_per_shape=3.0,
        seconds_per_run=0.5,
    )
    cells = [cell for cell in find_grid("h100").cells().values() if cell.compute_budget == 1e13]
    entries = sum(cell.tokens * cell.d_model * cell.num_layers for cell in cells)
    device = sum(real_flops(cell) / 1e14 + cell.tokens / 1e7 for cell in cells) + entries / 1e9
    host = 3 * len(shapes(cells)) + 0.5 * len(cells)
    assert rate.elapsed(cells, packed=1) == pytest.approx(device + host)
    assert rate.elapsed(cells, packed=2) == pytest.approx(max(device, (device + host) / 2))
    assert rate.elapsed(cells, packed=100) == pytest.approx(device)


def test_the_command_prints_plan_and_problems(tmp_path, capsys):
    path = written(tmp_path)
    assert cli(["scaling", "plan", str(path), "--cells"]) == 0
    assert "10 runs" in capsys.readouterr().out
    path.write_text(GRID.replace("max_steps = 2_000", "max_steps = 600"))
    assert cli(["scaling", "plan", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [TOO_LONG] and "expected on one H100" in captured.out


def test_a_path_that_is_not_here_is_looked_for_beside_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_grid("tests/scaling/micro.toml").name == "micro"
    (tmp_path / "tests" / "scaling").mkdir(parents=True)
    (tmp_path / "tests" / "scaling" / "micro.toml").write_text("name = 3")
    with pytest.raises(UserError):  # what is here comes first
        find_grid("tests/scaling/micro.toml")


def test_rates_over_the_width_stand_in_place_of_the_default_and_beside_named_ones(tmp_path):
    by_width = GRID.replace("[[groups]]", "[[groups]]\nrates_per_width = [2.0, 1.0]")
    names = list(read_grid(written(tmp_path, by_width)).cells())
    assert names[:4] == [f"1e14-{each}" for each in ("128x2x2-b128-lr0.0156", "128x2x2-b128-lr0.00781")] + names[2:4]
    assert problems(read_grid(written(tmp_path, by_width))) == []
    both = by_width.replace("rates_per_width = [2.0, 1.0]", "learning_rates = [1e-3]\nrates_per_width = [2.0]")
    assert {cell.learning_rate for cell in read_grid(written(tmp_path, both)).cells().values()} > {1e-3, 0.0156}
