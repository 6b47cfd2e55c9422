"""The surrogate on runs made from a law, where the truth is known everywhere."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs336.scaling import loss_model
from cs336.scaling.loss_model import configuration_of, decade, held_out
from cs336.scaling.parametric import CHINCHILLA
from cs336.scaling.runs import MEASURED_RUNS, read_runs
from cs336.scaling.surrogate import (
    BUDGETS,
    EXTRAPOLATED,
    INTERPOLATED,
    LIMITED_FROM,
    LOSS_AT_INITIALISATION,
    MEASURED,
    SAMPLE_LOSS,
    SAMPLE_QUERY,
    HeldOut,
    api_accepts,
    errors_of,
    fit_surrogate,
)
from tests.scaling.made_runs import INITIAL_LOSS, configuration, made_loss, made_run, made_runs

NOISE = 0.01


@pytest.fixture(scope="module")
def runs():
    return made_runs(noise=NOISE)


@pytest.fixture(scope="module")
def surrogate(runs):
    return fit_surrogate(runs)


@pytest.fixture(scope="module")
def unfitted():
    return fit_surrogate([])


any_configuration = st.builds(
    configuration,
    st.integers(64, 1024),
    st.integers(2, 24),
    st.integers(2, 16),
    st.sampled_from([128, 256]),
    st.floats(1e-4, 1e-3),
    st.sampled_from(BUDGETS),
)


def test_the_budgets_are_the_handouts_sixteen():
    assert len(BUDGETS) == 16 and BUDGETS[:4] == (10**13, 3 * 10**13, 6 * 10**13, 10**14)
    assert BUDGETS[-2:] == (6 * 10**17, 10**18)


def test_a_measured_configuration_gets_its_own_loss(surrogate, runs):
    for run in runs:
        found = surrogate.predict(configuration_of(run))
        assert (found.loss, found.provenance) == (run.final_loss, MEASURED)


def test_of_several_seeds_the_lowest_answers_and_all_tell_the_noise(runs):
    again = [replace(run, seed=seed, final_loss=run.final_loss + shift) for run in runs[:5] for seed, shift in
             ((3, 0.06), (2, 0.03))]  # fmt: skip
    surrogate = fit_surrogate([*again, *runs])
    assert surrogate.predict(configuration_of(runs[0])).loss == runs[0].final_loss
    assert surrogate.predict(configuration_of(runs[0])).uncertainty == pytest.approx(0.03)
    assert surrogate.summary()["seed_noise_nats"] == pytest.approx(0.03)


def test_between_the_runs_it_is_as_near_as_it_says(surrogate):
    draw = np.random.default_rng(1)
    errors, claimed = [], []
    while len(errors) < 300:
        shape = (int(draw.integers(64, 512)), int(draw.integers(2, 9)), int(draw.integers(2, 9)))
        batch_size, rate = int(draw.choice([128, 256])), float(draw.uniform(2e-4, 1e-3))
        asked = configuration(*shape, batch_size, rate, int(draw.choice(BUDGETS[:8])))
        found = surrogate.predict(asked)
        if found.provenance == INTERPOLATED and asked.steps:
            errors.append(found.loss - made_loss(asked))
            claimed.append(found.uncertainty)
    rmse = float(np.sqrt(np.mean(np.square(errors))))
    assert rmse < 0.03
    assert 0.5 < rmse / np.mean(claimed) < 2


def test_ten_times_beyond_the_runs_it_is_as_near_as_it_says(surrogate):
    errors, claimed = [], []
    for shape in [(256, 4, 4), (384, 6, 6), (512, 8, 8)]:
        asked = configuration(*shape, 128, 1e-3, 6 * 10**16)
        found = surrogate.predict(asked)
        assert found.provenance == EXTRAPOLATED and "beyond their" in found.source
        errors.append(found.loss - made_loss(asked))
        claimed.append(found.uncertainty)
    assert np.sqrt(np.mean(np.square(errors))) < min(0.2, 2 * np.mean(claimed)) and np.mean(claimed) < 0.5


@settings(max_examples=30, deadline=None)
@given(any_configuration)
def test_beyond_the_runs_it_is_the_less_sure_the_more_compute(surrogate, asked):
    """Down to the floor, where the process alone would be sure of what nobody measured."""
    found = [surrogate.predict(replace(asked, train_flops=budget)) for budget in BUDGETS]
    claimed = [each.uncertainty for each in found if each.provenance == EXTRAPOLATED]
    assert all(more > less * (1 - 1e-6) for less, more in itertools.pairwise(claimed))
    assert claimed[-1] > 0.05, "1e18 FLOPs are beyond all runs"


def test_what_is_beyond_the_runs_is_named(surrogate):
    inside = configuration(256, 4, 4, 128, 7e-4, 10**15)
    assert surrogate.predict(inside).source == "a Gaussian process fitted to 260 measured runs"
    for changes, name in (
        ({"d_model": 576}, "width"),
        ({"num_layers": 9}, "depth"),
        ({"learning_rate": 1.9e-4}, "learning rate"),
        ({"num_heads": 1}, "head size"),
        ({"train_flops": 10**16}, "steps and budget"),
    ):
        found = surrogate.predict(replace(inside, **changes))
        assert found.provenance == EXTRAPOLATED and f"beyond their {name}" in found.source


def test_errors_held_out_are_published_by_decade(surrogate, runs):
    by_decade = surrogate.held_out_rmse()
    assert list(by_decade) == ["1e13", "1e14", "1e15"]
    assert sum(each["runs"] for each in by_decade.values()) == len(runs)
    assert all(NOISE / 2 < each["rmse"] < 0.06 for each in by_decade.values())
    assert by_decade["1e15"]["rmse"] < 0.03
    assert surrogate.summary()["held_out_rmse_nats_by_decade"] == by_decade


def test_errors_of_what_the_api_accepts_by_hand():
    pairs = [HeldOut(1e15, 4.0, 4.3, True), HeldOut(1e15, 4.0, 3.6, True), HeldOut(3e15, 5.0, 6.0, False)]
    found = errors_of(pairs)
    assert found == {"rmse": pytest.approx((1.25 / 3) ** 0.5), "runs": 3, "api_rmse": pytest.approx(0.125**0.5),
                     "api_runs": 2}  # fmt: skip
    assert errors_of(pairs[2:])["api_rmse"] is None


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({}, True),
        ({"learning_rate": 1e-3}, True),
        ({"learning_rate": 1.01e-3}, False),
        ({"learning_rate": 9e-5}, False),
        ({"d_model": 63}, False),
        ({"num_layers": 1}, False),
        ({"num_heads": 17}, False),
        ({"batch_size": 64}, False),
        ({"train_flops": 2 * 10**15}, False),
        ({"train_flops": 1e15}, True),
    ],
)
def test_runs_count_by_what_the_api_accepts(runs, changes, accepted):
    """A row of another learning rate is fitted, and its error is told, but not as one of the API's."""
    asked = replace(configuration(256, 4, 4, 128, 7e-4, 10**15), **changes)
    assert api_accepts(asked) == accepted


def test_a_run_held_out_never_helps_to_predict_itself(runs):
    """Whatever it lost, its fold is predicted alike, to the last bit; the other folds, which it is fitted in, are not.

    And noise that nothing explains comes back whole.
    """
    before, _ = held_out(runs, INITIAL_LOSS)
    folds = loss_model._folds(runs)
    changed = [replace(runs[0], final_loss=runs[0].final_loss - 1.0), *runs[1:]]
    after, _ = held_out(changed, INITIAL_LOSS)
    np.testing.assert_array_equal(after[folds == folds[0]], before[folds == folds[0]])
    assert (after[folds != folds[0]] != before[folds != folds[0]]).all()
    noise = np.random.default_rng(2).normal(scale=0.2, size=len(runs))
    noisy = [replace(run, final_loss=made_loss(configuration_of(run)) + error) for run, error in
             zip(runs, noise, strict=True)]  # fmt: skip
    losses, _ = held_out(noisy, INITIAL_LOSS)
    errors = losses - np.array([run.final_loss for run in noisy])
    assert 0.9 * noise.std() < errors.std() < 1.5 * noise.std()


def test_all_seeds_of_a_configuration_are_held_out_together(runs):
    """Else the noise of one seed would be known from the other. The folds are about as large as each other."""
    folds = loss_model._folds([*runs, *(replace(run, seed=1) for run in runs)])
    np.testing.assert_array_equal(folds[: len(runs)], folds[len(runs) :])
    counts = np.bincount(folds)
    assert len(counts) == 5 and counts.max() - counts.min() <= 2


@settings(max_examples=60, deadline=None)
@given(any_configuration)
def test_more_compute_never_gives_a_higher_loss(surrogate, unfitted, asked):
    for fitted in (surrogate, unfitted):
        losses = [fitted.predict(replace(asked, train_flops=budget)).loss for budget in BUDGETS]
        assert all(more <= less for less, more in itertools.pairwise(losses))
        assert all(math.isfinite(loss) and 0 < loss <= LOSS_AT_INITIALISATION for loss in losses)


def test_more_compute_never_gives_a_higher_loss_where_the_runs_say_so(runs):
    """Runs from 6e14 FLOPs up that went wrong lift the process there, and no answer."""
    wrong = [replace(run, final_loss=run.final_loss + 2.0 * (run.train_flops >= BUDGETS[5])) for run in runs]
    fitted = fit_surrogate(wrong)
    asked = [configuration(200, 4, 4, 128, 7e-4, budget) for budget in BUDGETS]
    losses = [fitted.predict(each).loss for each in asked]
    assert fitted._model(asked)[5] > losses[4] + 0.5
    assert losses[5] == losses[4] and all(more <= less for less, more in itertools.pairwise(losses))


def test_more_compute_never_gives_a_higher_loss_around_measured_runs_either(runs):
    """A lucky run and an unlucky one, far off the fit, pull their neighbours along."""
    asked = configuration(200, 4, 4, 128, 7e-4, BUDGETS[0])
    lucky = made_run(replace(asked, train_flops=BUDGETS[3]), loss=6.0)
    unlucky = made_run(replace(asked, train_flops=BUDGETS[6]), loss=5.9)
    surrogate = fit_surrogate([*runs, lucky, unlucky])
    losses = [surrogate.predict(replace(asked, train_flops=budget)).loss for budget in BUDGETS]
    assert losses[3] == 6.0 and losses[6] == 5.9
    assert all(more <= less for less, more in itertools.pairwise(losses))


def test_the_same_runs_in_another_order_give_the_same_losses_to_the_last_bit(surrogate, runs):
    shuffled = fit_surrogate(np.random.default_rng(0).permutation(np.array(runs, dtype=object)).tolist())
    draw = np.random.default_rng(3)
    for _ in range(50):
        asked = configuration(int(draw.integers(64, 1025)), 5, 3, 128, float(draw.uniform(1e-4, 1e-3)), 10**16)
        assert shuffled.predict(asked) == surrogate.predict(asked)


@pytest.mark.parametrize("num_heads", range(2, 17))
def test_heads_that_do_not_divide_the_width_are_nothing_special(surrogate, num_heads):
    """Between the losses of the neighbours that do divide it, up to the claimed error."""
    asked = configuration(240, 4, num_heads, 128, 1e-3, 10**15)
    found = surrogate.predict(asked)
    assert abs(found.loss - made_loss(asked)) < 4 * found.uncertainty


def test_a_budget_below_one_step_gets_the_loss_at_initialisation(surrogate, runs):
    asked = configuration(1024, 24, 16, 128, 1e-3, 10**13)
    assert asked.steps == 0
    assert surrogate.predict(asked).loss == LOSS_AT_INITIALISATION
    assert "below one step" in surrogate.predict(asked).source
    measured = fit_surrogate([*runs, made_run(asked, loss=10.42), made_run(replace(asked, num_heads=8), loss=10.44)])
    assert measured.predict(asked).loss == 10.42
    assert measured.predict(replace(asked, num_heads=4)).loss == pytest.approx(10.43)


def test_the_boundary_of_one_step_by_hand():
    """12 * 8 * 512^2 = 25.2 M parameters: 6 N B 512 is 0.9896e13 for one step of 128, and twice that of 256."""
    assert configuration(512, 8, 8, 128, 1e-3, 10**13).steps == 1
    assert configuration(512, 8, 8, 256, 1e-3, 10**13).steps == 0


def test_our_own_rows_are_answered_as_near_as_promised_and_plausibly_beyond():
    """What the service of this package answers from: 0.03 nats from 1e15 FLOPs up, and corners that nobody trained."""
    surrogate = fit_surrogate(read_runs(MEASURED_RUNS))
    large = [pair for pair in surrogate.held_out_pairs() if pair.budget >= LIMITED_FROM]
    assert errors_of(large)["api_rmse"] < 0.03 < errors_of(large)["rmse"] < 0.11 and errors_of(large)["api_runs"] >= 14
    for shape in [(1024, 24, 16), (1024, 2, 2), (64, 24, 16), (64, 2, 2), (512, 8, 8)]:
        for batch_size, rate in itertools.product((128, 256), (1e-4, 1e-3)):
            asked = [configuration(*shape, batch_size, rate, budget) for budget in BUDGETS]
            losses = [surrogate.predict(each).loss for each in asked]
            assert 1.7 < losses[-1] < 5 and losses == sorted(losses, reverse=True)
            assert losses[-1] > 3.5 or shape[0] > 64, "a small model does not become a large one by training on"
            assert losses[-1] < losses[-4] < losses[-7] < losses[-10], "a decade lowers every loss"
    sample = surrogate.predict(SAMPLE_QUERY)
    assert 6 < sample.loss < 9 and sample.provenance == EXTRAPOLATED and sample.uncertainty > 0.3


def test_without_runs_it_is_the_published_law_and_says_so(unfitted):
    asked = configuration(512, 8, 8, 128, 1e-3, 10**17)
    found = unfitted.predict(asked)
    parameters = 12 * 8 * 512**2
    law = float(CHINCHILLA(parameters, 1e17 / (6 * parameters)))
    assert found.loss == pytest.approx(law)
    assert found.provenance == EXTRAPOLATED and "published law" in found.source
    assert unfitted.summary()["model"] == "the published law of Hoffmann et al. 2022"
    assert unfitted.held_out_rmse() == {}


def test_its_uncertainty_then_is_its_error_at_the_published_answer(unfitted):
    found = unfitted.predict(SAMPLE_QUERY)
    assert found.uncertainty == pytest.approx(abs(found.loss - SAMPLE_LOSS))
    assert 1.4 < found.uncertainty < 1.7


@pytest.mark.parametrize("seeds", [1, 10])
def test_a_few_runs_are_served_but_not_fitted(runs, seeds):
    """However many seeds they have."""
    few = fit_surrogate([replace(run, seed=seed) for run in runs[:5] for seed in range(seeds)])
    found = few.predict(configuration_of(runs[0]))
    assert (found.loss, found.provenance) == (runs[0].final_loss, MEASURED)
    assert "published" in few.summary()["model"] and few.summary()["measured_runs"] == 5 * seeds


@pytest.mark.parametrize(
    "changes",
    [{"outcome": "diverged: loss is nan at step 5"}, {"vocab_size": 300}, {"context_length": 16}, {"steps": 7}],
)
def test_a_run_that_is_none_of_the_api_is_left_out(surrogate, runs, changes):
    asked = configuration(300, 4, 4, 128, 1e-3, 10**15)
    odd = fit_surrogate([*runs, made_run(asked, loss=1.0, **changes)])
    assert odd.predict(asked) == surrogate.predict(asked)


def test_a_repeated_text_is_told(runs):
    again = fit_surrogate([replace(runs[0], epochs=3.5)])
    assert "3.5 epochs" in again.predict(configuration_of(runs[0])).source


def test_the_summary_is_json(runs, surrogate, unfitted):
    for each in (surrogate, unfitted, fit_surrogate(runs[:5])):
        assert json.loads(json.dumps(each.summary(), allow_nan=False)) == each.summary()


def test_decades_by_hand():
    assert [decade(budget) for budget in (10**13, 6 * 10**13, 10**15, 9.99e15, 10**18)] == [
        "1e13",
        "1e13",
        "1e15",
        "1e15",
        "1e18",
    ]
