"""vLLM behind the interface of `backend.py`: in this process, or in a child of it. As a server: `vllm_server.py`.

Needs the package's extra, `pip install -e '.[gpu]'`; nothing here imports it before it is used. Written for vLLM 0.26
and 0.32; `make test-vllm` runs its tests with the CPU build.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cs336.files import UserError
from cs336.generate.backend import Generation, Prompt, Sample, SamplingParams, numbers_of
from cs336.generate.sampling import in_usual_forms
from cs336.generate.vllm_requests import check_level, finish_of, generation_of, request_of
from cs336.progress import Progress, silent

_OWN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"  # read when vLLM starts


def require_vllm() -> None:
    """Do nothing if vLLM is installed.

    Raises:
        UserError: it is not; the line names the extra.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed; pip install -e '.[gpu]', or take what needs nothing: our engine, the offline judge"
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
        with in_usual_forms():  # it compiles, which Inductor refuses in part within a deterministic run
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
            vllm_sampling(**request_of(params, number), logprobs=0 if params.logprobs else None)
            for number in numbers_of(prompts, numbers)
        ]
        inputs = [prompt if isinstance(prompt, str) else {"prompt_token_ids": list(prompt)} for prompt in prompts]
        with in_usual_forms():
            outputs = self._llm.generate(inputs, requests, use_tqdm=False)
        return [
            generation_of(
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
        check_level(level)
        if not self._asleep:
            self._llm.sleep(level=level)
        self._asleep = True

    def wake(self) -> None:
        """As `Backend.wake`."""
        if self._asleep:
            self._llm.wake_up()
        self._asleep = False


def _in_order(outputs: Iterable[Any]) -> list[Any]:
    return sorted(outputs, key=lambda output: output.index)


def _sample(output: Any, params: SamplingParams) -> Sample:
    ids = list(output.token_ids)
    logprobs = None
    if params.logprobs:
        logprobs = [of_place[token].logprob for token, of_place in zip(ids, output.logprobs, strict=True)]
    return Sample(output.text, ids, logprobs, finish_of(output.finish_reason, output.stop_reason))


def _vllm() -> Any:
    require_vllm()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import vllm

    return vllm
