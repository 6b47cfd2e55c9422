"""vLLM as a server behind the interface of `backend.py`: its client, which needs no vLLM, and its start, which does.

It speaks OpenAI's protocol, and in development mode what weights, sleep and resets need. Written for vLLM 0.26 and
0.32.
"""

from __future__ import annotations

import contextlib
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

from torch import Tensor

from cs336.files import UserError
from cs336.generate.backend import Generation, Prompt, Sample, SamplingParams, numbers_of
from cs336.generate.vllm import require_vllm
from cs336.generate.vllm_requests import check_level, finish_of, generation_of, request_of
from cs336.progress import Progress, silent

_SHARED_MEMORY = Path("/dev/shm")  # weights for a server on this machine pass through it, where there is one
_MOST_REQUESTS = 256  # that wait for a server's answers at once, as its own most sequences by default
_START_SECONDS = 600.0


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
            request = request_of(params, number) | {
                "model": self._model,
                "prompt": prompt if isinstance(prompt, str) else list(prompt),
                "return_token_ids": True,
                "logprobs": 1 if params.logprobs else None,
                "repetition_penalty": 1.0,  # else the server takes the checkpoint's own
            }
            choices = sorted(self._ask("POST", "/v1/completions", request)["choices"], key=lambda each: each["index"])
            return generation_of(
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
        check_level(level)
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


def _sample_of_choice(choice: dict[str, Any], params: SamplingParams) -> Sample:
    ids = choice["token_ids"]
    if ids is None:
        raise RuntimeError("the server sends no token ids; it is older than vLLM 0.26, or no vLLM")
    logprobs = choice["logprobs"]["token_logprobs"] if params.logprobs else None
    return Sample(choice["text"], ids, logprobs, finish_of(choice["finish_reason"], choice.get("stop_reason")))
