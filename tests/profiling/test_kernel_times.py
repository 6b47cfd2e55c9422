"""Kernels of a trace find their ranges, and the five questions are answered by hand-made and real traces."""

import gzip
import json

import pytest
import torch

from cs336.profiling.config import TINY_PROFILING
from cs336.profiling.kernel_study import profile_contexts, profile_page
from cs336.profiling.kernel_times import (
    answer_questions,
    kernel_calls,
    kind_of,
    profile_step,
    short_name,
    softmax_flop_ratio,
)
from cs336.profiling.ranges import BACKWARD, FORWARD, OPTIMIZER, SCORES, SOFTMAX
from cs336.profiling.step_times import StepConfig, parse_size

CPU = torch.device("cpu")
TINY = StepConfig(size="16x32x2x2", context_length=16, batch_size=2, warmup=1, steps=2)


def _event(category, name, start, duration, **arguments):
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "tid": 1, "args": arguments}


def test_a_kernel_belongs_to_the_ranges_in_which_it_was_launched():
    events = [
        _event("user_annotation", FORWARD, 0, 100),
        _event("user_annotation", SOFTMAX, 10, 20),
        _event("user_annotation", BACKWARD, 100, 100),
        _event("user_annotation", "ProfilerStep#1", 0, 200),
        _event("cuda_runtime", "cudaLaunchKernel", 12, 1, correlation=1),
        _event("cuda_driver", "cuLaunchKernelEx", 50, 1, correlation=2) | {"tid": 2},
        _event("cuda_runtime", "cudaLaunchKernel", 150, 1, correlation=3) | {"tid": 3},
        _event("kernel", "softmax", 500, 7, correlation=1),  # long after its launch
        _event("kernel", "gemm", 510, 9, correlation=2),
        _event("kernel", "gemm", 520, 11, correlation=3),
        {"ph": "M", "name": "process_name"},
    ]
    calls = kernel_calls(events, on_gpu=True)
    assert [(call.name, round(1e6 * call.seconds), set(call.ranges)) for call in calls] == [
        ("softmax", 7, {FORWARD, SOFTMAX}),
        ("gemm", 9, {FORWARD}),
        ("gemm", 11, {BACKWARD}),
    ]


def test_of_an_operator_only_the_time_that_it_spends_itself():
    events = [
        _event("cpu_op", "aten::matmul", 0, 100),
        _event("cpu_op", "aten::mm", 10, 60),
        _event("cpu_op", "aten::add", 80, 10),
        _event("cpu_op", "aten::exp", 100, 5),
        _event("cpu_op", "aten::mul", 20, 30) | {"tid": 2},
    ]
    times = {call.name: round(1e6 * call.seconds) for call in kernel_calls(events, on_gpu=False)}
    assert times == {"aten::matmul": 30, "aten::mm": 60, "aten::add": 10, "aten::exp": 5, "aten::mul": 30}


def test_names_of_kernels():
    assert kind_of("nvjet_sm90_tst_192x192_64x3_2x1_v_bz_coopB_NNN") == "matrix products"
    assert kind_of("void at::native::vectorized_elementwise_kernel<4, at::native::MulFunctor<float>") == "elementwise"
    assert kind_of("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float") == "reductions"
    assert kind_of("void cublasLt::splitKreduce_kernel<32, 16, int, float") == "matrix products"
    assert kind_of("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n") == "matrix products"
    long = "void at::native::vectorized_elementwise_kernel<4, at::native::MulFunctor<float>, std::array<char*, 3ul> >"
    assert short_name(long + "(int, at::native::MulFunctor<float>)") == "vectorized_elementwise_kernel (MulFunctor)"
    copy = (
        "at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl_nocast<at::native::direct_copy_kernel_cuda"
    )
    assert (
        short_name(f"void {copy}(at::TensorIteratorBase&)::{{lambda()#3}}>")
        == "elementwise_kernel (direct_copy_kernel_cuda)"
    )
    total = "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::func_wrapper_t<float, "
    assert (
        short_name(total + "at::native::sum_functor<float, float, float>::operator()") == "reduce_kernel (sum_functor)"
    )
    assert short_name("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n") == "sm80_xmma_gemm_f32f32_f32f32_f32_nn_n"


def test_softmax_flops_by_hand():
    assert softmax_flop_ratio(parse_size("small")) == pytest.approx(5 / (4 * 64))


def test_a_real_step_has_all_ranges_and_leaves_a_small_trace(tmp_path):
    path = tmp_path / "trace.json.gz"
    calls = profile_step(TINY, CPU, path)
    seen = set().union(*(call.ranges for call in calls))
    assert {FORWARD, BACKWARD, SCORES, SOFTMAX} <= seen and OPTIMIZER not in seen
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert {event["cat"] for event in events if event["ph"] == "X"} == {"cpu_op", "user_annotation"}


def test_the_five_questions_of_a_tiny_model(tmp_path):
    row = answer_questions(TINY, CPU, tmp_path)
    assert row["training_mode"] == "step" and row["kernel_seconds"] > 0
    assert 0 < row["training_matmul_share"] < 1 and 0 < row["forward_matmul_share"] < 1
    assert sum(row["seconds_by_kind"].values()) == pytest.approx(row["kernel_seconds"])
    assert row["softmax_seconds"] > 0 and row["attention_matmul_seconds"] > 0
    assert len(list(tmp_path.iterdir())) == 2
    full = {
        "case": "x",
        "device": "cpu",
        "settings": {"kind": "profile", "size": TINY.size, "context_length": 16},
    } | row
    page = profile_page(TINY_PROFILING, [TINY.size], [full]).markdown()
    assert "5. Softmax takes" in page and "| 16x32x2x2 |" in page


def test_long_sizes_go_on_doubling():
    assert profile_contexts(TINY_PROFILING, "16x32x2x2") == [16, 32, 64]
    assert profile_contexts(TINY_PROFILING, "32x64x2x4") == [16, 32]
