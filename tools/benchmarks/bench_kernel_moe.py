# SPDX-License-Identifier: Apache-2.0
"""kt-kernel: the MoE layer by weight format, in decode and prefill, and packing of its experts."""

from kt_kernel import Experts, Stream

from .inputs import CpuTime, Layer, Warm, cases


class Forward(CpuTime):
    params = (cases.BENCH_FORMATS, cases.BENCH_ROWS)
    param_names = ("format", "num_tokens")

    def prepare(self, format, num_tokens):
        self.layer = Layer(format, num_tokens)

    def time_forward(self, format, num_tokens):
        self.layer.moe.forward(*self.layer.call)


class Call(Warm):
    """The ways to make one decode call, waiting included. Wall time."""

    def prepare(self):
        self.layer = Layer("int4", 1)
        self.stream = Stream(self.layer.pool)

    def time_moe_op(self):
        self.stream.moe(self.layer.moe, *self.layer.call)

    def time_submit_and_wait(self):
        self.layer.moe.wait(self.layer.moe.submit(*self.layer.call))


class PackExperts(CpuTime):
    params = cases.BENCH_FORMATS
    param_names = ("format",)

    def prepare(self, format):
        self.layer = Layer(format, 1)

    def time_pack(self, format):
        layer = self.layer
        Experts.pack(layer.gate, layer.gate, layer.down, format=format, pool=layer.pool)

    def time_put(self, format):
        self.layer.experts.put(0, "gate", self.layer.gate[0])
