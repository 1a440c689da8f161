# SPDX-License-Identifier: Apache-2.0
"""kt-kernel: the MoE layer by weight format, in decode and prefill, and packing of its experts."""

from kt_kernel import Experts, Stream

from .inputs import CpuTime, Layer, Warm, cases, make_pool, normal


class Forward(CpuTime):
    params = (cases.BENCH_MOE_FORMATS, cases.BENCH_ROWS)
    param_names = ("format", "num_tokens")

    def prepare(self, format, num_tokens):
        self.layer = Layer(format, cases.BENCH_MOE, num_tokens)

    def time_forward(self, format, num_tokens):
        self.layer.moe.forward(*self.layer.call)


class ForwardOfModel(CpuTime):
    """Layers as models have them, each in a format of its model."""

    params = (tuple(cases.BENCH_LAYERS), cases.BENCH_LAYER_ROWS)
    param_names = ("model", "num_tokens")

    def prepare(self, model, num_tokens):
        format, case, activation = cases.BENCH_LAYERS[model]
        self.layer = Layer(format, case, num_tokens, activation, biases=model == "gpt-oss")

    def time_forward(self, model, num_tokens):
        self.layer.moe.forward(*self.layer.call)


class Call(Warm):
    """The ways to make one decode call, waiting included. Wall time."""

    def prepare(self):
        self.layer = Layer("int4", cases.BENCH_MOE, 1)
        self.stream = Stream(self.layer.pool)

    def time_moe_op(self):
        self.stream.moe(self.layer.moe, *self.layer.call)

    def time_submit_and_wait(self):
        self.layer.moe.wait(self.layer.moe.submit(*self.layer.call))


class PackExperts(CpuTime):
    params = cases.BENCH_FORMATS
    param_names = ("format",)

    def prepare(self, format):
        case = cases.BENCH_MOE
        self.pool = make_pool()
        self.gate = normal(case.num_experts, case.intermediate_size, case.hidden_size)
        self.down = normal(case.num_experts, case.hidden_size, case.intermediate_size)
        self.experts = Layer(format, case, 1).experts

    def time_pack(self, format):
        Experts.pack(self.gate, self.gate, self.down, format=format, pool=self.pool)

    def time_put(self, format):
        self.experts.put(0, "gate", self.gate[0])
