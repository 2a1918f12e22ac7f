"""Eq. 6-9 of the paper, and what they become when a share tau of every attention map is frozen.

The paper writes FLOPs for what are multiply-accumulates: every number here is in MACs, exact, for one image.
"""

from __future__ import annotations

from math import isqrt

from cost_model.architectures import Architecture
from cost_model.counts import Cost, Macs, count
from cost_model.memory import packed_bytes
from eamsim.errors import UserError
from eamsim.program import Attention, Linear, Program, Softmax

FROZEN_BITS = 4  # EAM_4bits
CODE_BITS, PIXEL_BITS, RESIDUAL_BITS = 4, 8, 16  # the default datapath's activations


def mhsa_macs(tokens: int, width: int) -> int:
    """Eq. 6: 4 N d^2 + 2 N^2 d."""
    return 4 * tokens * width**2 + 2 * tokens**2 * width


def mlp_macs(tokens: int, width: int) -> int:
    """Eq. 7: 8 N d^2."""
    return 8 * tokens * width**2


def layer_macs(tokens: int, width: int) -> int:
    """Eq. 8 and 9: 12 N d^2 + 2 N^2 d."""
    return mhsa_macs(tokens, width) + mlp_macs(tokens, width)


def frozen_per_head(tokens: int, tau: float) -> int:
    """Attention weights frozen in each head: round(tau * N^2)."""
    return round(tau * tokens**2)


def estimate(model: Architecture, tau: float, softmax: Softmax) -> Cost:
    """The cost of `model` if each head froze round(tau * N^2) scattered weights: an estimate, exact wherever the masks do that.

    `paper`: no score is saved, as the denominator of the softmax runs over all of them. `renormalised`: frozen scores
    (tau N^2 d) are not computed, and a wholly frozen head (tau = 1) needs no q and no k. A.V costs N^2 d in both.
    """
    n, d = model.tokens, model.width
    frozen = frozen_per_head(n, tau)
    saved = frozen if softmax == "renormalised" else 0
    qkv_channels = d if saved == n**2 else 3 * d
    block = Macs(
        qkv=n * d * qkv_channels, scores=(n**2 - saved) * d, attention_value=n**2 * d, proj=n * d**2, fc1=4 * n * d**2, fc2=4 * n * d**2
    )
    ends = Macs(patch_embedding=model.patches * model.patch_channels * d, head=d * model.classes)
    tensors = model.depth * [d * qkv_channels, d**2, 4 * d**2, 4 * d**2] + [model.patch_channels * d, d * model.classes]
    return Cost(
        macs=sum(model.depth * [block], ends),
        weight_bytes=sum(packed_bytes(size, model.weight_bits) for size in tensors),
        mask_bytes=model.depth * packed_bytes(model.heads * n**2, 1) if frozen else 0,
        code_bytes=model.depth * packed_bytes(model.heads * frozen, FROZEN_BITS),
        activation_bytes=activation_bytes(model),
    )


def activation_bytes(model: Architecture) -> int:
    """The larger of the two peaks: the image beside its codes, and fc2 between two residual streams."""
    image = packed_bytes(3 * model.image**2, PIXEL_BITS)
    residual = packed_bytes(model.tokens * model.width, RESIDUAL_BITS)
    hidden = packed_bytes(4 * model.tokens * model.width, CODE_BITS)
    return max(2 * image, residual + hidden + residual)


def architecture_of(program: Program) -> Architecture:
    """The architecture a plain ViT program executes, its frozen maps set aside; UserError for any other program."""
    attentions = [op for op in program.operations if isinstance(op, Attention)]
    linears = [op for op in program.operations if isinstance(op, Linear)]
    if attentions and len({op.weight_bits for op in linears}) == 1:
        model = Architecture(
            name=program.name,
            width=attentions[0].out.shape[1],
            heads=attentions[0].heads,
            depth=len(attentions),
            image=program.image.shape[0],
            patch=isqrt(linears[0].weight.shape[0] // 3),
            classes=program.output.size,
            weight_bits=linears[0].weight_bits,
        )
        if count(program).macs.dense == estimate(model, 0, "paper").macs:
            return model
    raise UserError(
        f"{program.name}: --tau expects a plain ViT with one weight width, got another program; leave --tau out to count its own masks"
    )
