"""vLLM behind the interface of `backend.py`: in this process, or as a server that speaks OpenAI's protocol.

Needs the package's extra, `pip install 'cs336[gpu]'`; nothing here imports it before it is used. Written for vLLM 0.26
and 0.32; `make test-vllm` runs its tests with the CPU build.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cs336.files import UserError
from cs336.generate.backend import Generation, Prompt, Sample, SamplingParams, numbers_of, seed_of
from cs336.progress import Progress, silent

_SHARED_MEMORY = Path("/dev/shm")  # weights for a server on this machine pass through it, where there is one
_MOST_REQUESTS = 256  # that wait for a server's answers at once, as its own most sequences by default
_START_SECONDS = 600.0
_OWN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"  # read when vLLM starts


def require_vllm() -> None:
    """Do nothing if vLLM is installed.

    Raises:
        UserError: it is not; the line names the extra.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed; pip install 'cs336[gpu]', or take our own engine, which needs nothing more"
        )


def start_llm(*, own_process: bool, **options: Any) -> Any:
    """A `vllm.LLM`.

    Args:
        own_process: in a child, with which all its memory goes; else in this process, where weights can be handed to
            it as they are.
        options: of `vllm.LLM`.

    Raises:
        UserError: vLLM is not installed.
    """
    vllm = _vllm()
    before = os.environ.get(_OWN_PROCESS)
    os.environ[_OWN_PROCESS] = str(int(own_process))
    try:
        return vllm.LLM(**options)
    finally:
        os.environ.pop(_OWN_PROCESS)
        if before is not None:
            os.environ[_OWN_PROCESS] = before


def vllm_sampling(**settings: Any) -> Any:
    """A `vllm.SamplingParams`.

    Raises:
        UserError: vLLM is not installed.
    """
    return _vllm().SamplingParams(**settings)


class VllmEngine:
    """vLLM in this process, or in a child of it.

    Args:
        llm: a `vllm.LLM`; `start` makes one.
    """

    def __init__(self, llm: Any):
        self._llm = llm
        self._asleep = False

    @classmethod
    def start(
        cls,
        model: Path | str,
        *,
        memory_share: float = 0.85,
        max_model_len: int | None = None,
        seed: int = 0,
        sleep_mode: bool = True,
        own_process: bool = False,
        **options: Any,
    ) -> VllmEngine:
        """Start vLLM on a checkpoint.

        Args:
            model: a folder as `save_huggingface` writes it, tokenizer included.
            memory_share: of the device, for weights and cache; the handout's 0.85.
            max_model_len: context; the checkpoint's by default.
            seed: of what has no seed of its own.
            sleep_mode: allow `sleep` to give memory back (GPU alone).
            own_process: run in a child of this process, with which `close` gives all memory back for certain; such
                an engine takes no weights.
            options: for `vllm.LLM`, such as `dtype="bfloat16"` or `load_format="dummy"`.

        Raises:
            UserError: vLLM is not installed.
        """
        llm = start_llm(
            own_process=own_process,
            model=str(model),
            gpu_memory_utilization=memory_share,
            max_model_len=max_model_len,
            seed=seed,
            enable_sleep_mode=sleep_mode,
            enable_prefix_caching=True,
            **options,
        )
        return cls(llm)

    def close(self) -> None:
        """Let vLLM go, and its memory with it; nothing can be generated afterwards."""
        if self._llm is not None:
            self.wake()  # memory that is mapped nowhere cannot be freed
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()  # in one process its memory is free only when nothing refers to it
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        numbers: Sequence[int] | None = None,
        progress: Progress = silent,
    ) -> list[Generation]:
        """As `Backend.generate`; texts get the checkpoint's own special tokens.

        vLLM draws other random numbers than our engine: the two agree in distribution, and greedily.
        """
        if not prompts:
            return []
        requests = [
            vllm_sampling(**_request(params, number), logprobs=0 if params.logprobs else None)
            for number in numbers_of(prompts, numbers)
        ]
        inputs = [prompt if isinstance(prompt, str) else {"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(inputs, requests, use_tqdm=False)
        return [
            _generation(
                list(output.prompt_token_ids), [_sample(each, params) for each in _in_order(output.outputs)], params
            )
            for output in progress(outputs, total=len(outputs), unit="prompts", label="generate")
        ]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """As `Backend.load_weights`; the tensors may be on any device of this process."""
        if importlib.util.find_spec("vllm.model_executor.model_loader.reload") is not None:
            # Also where the running weights are packed for their kernels, as on a CPU.
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        else:
            self._llm.apply_model(lambda model: model.load_weights(iter(weights)))
        self.reset_prefix_cache()

    def reset_prefix_cache(self) -> None:
        """As `Backend.reset_prefix_cache`.

        Raises:
            RuntimeError: requests are still running.
        """
        if self._llm.reset_prefix_cache() is False:
            raise RuntimeError("vLLM did not reset its prefix cache: requests are still running")

    def sleep(self, level: int = 1) -> None:
        """As `Backend.sleep`."""
        _check_level(level)
        if not self._asleep:
            self._llm.sleep(level=level)
        self._asleep = True

    def wake(self) -> None:
        """As `Backend.wake`."""
        if self._asleep:
            self._llm.wake_up()
        self._asleep = False


class VllmServer:
    """A server of vLLM that is already running; `serving` starts one.

    Weights, sleep and resets need a server in development mode (`VLLM_SERVER_DEV_MODE=1`), weights one on this
    machine, too.

    Args:
        url: such as `http://127.0.0.1:8000`.
        model: its name there; the first that the server lists by default.
        exchange: folder through which weights pass; shared memory by default.
        timeout_seconds: of one answer.
    """

    def __init__(
        self, url: str, *, model: str | None = None, exchange: Path | None = None, timeout_seconds: float = 3_600.0
    ):
        self._url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._exchange = exchange or (_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()))
        self._model = model or self._ask("GET", "/v1/models")["data"][0]["id"]

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        numbers: Sequence[int] | None = None,
        progress: Progress = silent,
    ) -> list[Generation]:
        """As `Backend.generate`: one request a prompt, many at once."""

        def complete(prompt: Prompt, number: int) -> Generation:
            request = _request(params, number) | {
                "model": self._model,
                "prompt": prompt if isinstance(prompt, str) else list(prompt),
                "return_token_ids": True,
                "logprobs": 1 if params.logprobs else None,
                "repetition_penalty": 1.0,  # else the server takes the checkpoint's own
            }
            choices = sorted(self._ask("POST", "/v1/completions", request)["choices"], key=lambda each: each["index"])
            return _generation(
                choices[0]["prompt_token_ids"], [_sample_of_choice(each, params) for each in choices], params
            )

        pairs = list(zip(prompts, numbers_of(prompts, numbers), strict=True))
        with ThreadPoolExecutor(_MOST_REQUESTS) as pool:
            answers = pool.map(lambda pair: complete(*pair), pairs)
            return list(progress(answers, total=len(pairs), unit="prompts", label="generate"))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """As `Backend.load_weights`: through a file in `exchange`, which is gone afterwards."""
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory(prefix="cs336-weights-", dir=self._exchange) as folder:
            tensors = {name: weight.detach().to("cpu").contiguous() for name, weight in weights}
            save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            del tensors
            self._ask("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
        self.reset_prefix_cache()

    def reset_prefix_cache(self) -> None:
        """As `Backend.reset_prefix_cache`.

        Raises:
            RuntimeError: requests are still running.
        """
        answer = self._ask("POST", "/reset_prefix_cache")
        if answer.get("success") is False:
            raise RuntimeError("vLLM did not reset its prefix cache: requests are still running")

    def sleep(self, level: int = 1) -> None:
        """As `Backend.sleep`."""
        _check_level(level)
        self._ask("POST", f"/sleep?level={level}")

    def wake(self) -> None:
        """As `Backend.wake`; a server that is awake stays so."""
        if self._ask("GET", "/is_sleeping")["is_sleeping"]:
            self._ask("POST", "/wake_up")

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer's JSON, or nothing.

        Raises:
            ValueError: the server refused the request, by its own message.
            RuntimeError: it failed otherwise, or knows no such path.
        """
        import requests

        try:
            answer = requests.request(method, self._url + path, json=body, timeout=self._timeout_seconds)
        except requests.ConnectionError as error:
            raise RuntimeError(f"no vLLM server answers at {self._url} ({error})") from None
        if answer.status_code in (400, 422):
            raise ValueError(f"vLLM refused {path}: {answer.text[:500]}")
        if answer.status_code == 404:
            raise RuntimeError(
                f"vLLM knows no {path} or model; start it with VLLM_SERVER_DEV_MODE=1: {answer.text[:200]}"
            )
        if not answer.ok:
            raise RuntimeError(f"vLLM answered {path} by {answer.status_code}: {answer.text[:500]}")
        return answer.json() if answer.content else {}


@contextlib.contextmanager
def serving(
    model: Path | str,
    *,
    port: int = 8_000,
    devices: str | None = None,
    log: Path | None = None,
    options: Sequence[str] = (),
) -> Iterator[VllmServer]:
    """A server in a process of its own, as on the second of two GPUs; it ends with the `with`.

    Args:
        devices: what `CUDA_VISIBLE_DEVICES` is there, such as "1"; as here by default.
        log: file of what it prints; thrown away by default.
        options: more of `vllm.entrypoints.openai.api_server`, such as `("--dtype", "bfloat16")`.

    Raises:
        UserError: vLLM is not installed, or the server did not start.
    """
    require_vllm()
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--generation-config", "vllm", *options]
    with open(log or os.devnull, "ab") as output:
        # A group of its own: the server has children.
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(process, url, log)
            yield VllmServer(url)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path | None) -> None:
    import requests

    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            where = f"its log is {log}" if log else "give log= to see why"
            raise UserError(f"the vLLM server ended with status {process.returncode} before it was ready; {where}")
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        time.sleep(0.5)
    raise UserError(f"the vLLM server at {url} was not ready after {_START_SECONDS:.0f} s")


def _request(params: SamplingParams, number: int) -> dict[str, Any]:
    """What a prompt's request says, in process and over HTTP alike."""
    return {
        "n": _asked(params),
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "stop": list(params.stop) or None,
        "include_stop_str_in_output": params.include_stop_str_in_output,
        # Without the number, equal prompts would get equal samples.
        "seed": seed_of(params.seed, number),
    }


def _asked(params: SamplingParams) -> int:
    """Samples to ask for: greedily vLLM refuses more than one, since all would be equal."""
    return params.n if params.temperature else 1


def _in_order(outputs: Iterable[Any]) -> list[Any]:
    return sorted(outputs, key=lambda output: output.index)


def _generation(prompt_ids: list[int], samples: list[Sample], params: SamplingParams) -> Generation:
    return Generation(prompt_ids, samples if params.temperature else samples * params.n)


def _sample(output: Any, params: SamplingParams) -> Sample:
    ids = list(output.token_ids)
    logprobs = None
    if params.logprobs:
        logprobs = [of_place[token].logprob for token, of_place in zip(ids, output.logprobs, strict=True)]
    return Sample(output.text, ids, logprobs, _finish(output.finish_reason, output.stop_reason))


def _sample_of_choice(choice: dict[str, Any], params: SamplingParams) -> Sample:
    ids = choice["token_ids"]
    if ids is None:
        raise RuntimeError("the server sends no token ids; it is older than vLLM 0.26, or no vLLM")
    logprobs = choice["logprobs"]["token_logprobs"] if params.logprobs else None
    return Sample(choice["text"], ids, logprobs, _finish(choice["finish_reason"], choice.get("stop_reason")))


def _finish(reason: str | None, stop_reason: int | str | None) -> str:
    """Our word for why a text ended."""
    if reason == "length":
        return "length"
    if reason == "stop":  # by a string, by a token's id, or, with no reason, by the end-of-text token
        return "stop" if isinstance(stop_reason, str) else "end"
    raise RuntimeError(f"vLLM ended a text by {reason!r}; it was not finished")


def _check_level(level: int) -> None:
    if level not in (1, 2):
        raise ValueError(f"level is 1 (weights to the host) or 2 (weights dropped), got {level}")


def _vllm() -> Any:
    require_vllm()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import vllm

    return vllm
