"""The published shapes of the models the paper studies."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from eamsim.datapath import CODE_BITS, WEIGHT_BITS
from eamsim.errors import UserError


@dataclass(frozen=True)
class BlockShape:
    """One Transformer layer: tokens attend within windows of `window_tokens`; live: pairs of tokens that take part, window by window."""

    width: int
    heads: int
    window_tokens: int
    live: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """N: tokens of all windows."""
        return len(self.live) * self.window_tokens

    @property
    def pairs(self) -> int:
        """Attention weights of one head in all windows: M^2 N, or N^2 where there is one window."""
        return self.tokens * self.window_tokens


@dataclass(frozen=True)
class Projection:
    """A linear layer outside the Transformer layers; layer: its field of `counts.Macs`."""

    layer: str
    tokens: int
    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class Architecture:
    """A plain ViT with a class token: MLP four times as wide (Eq. 5), RGB images, head on the class token; all sizes in elements."""

    name: str
    width: int
    heads: int
    depth: int = 12
    image: int = 224
    patch: int = 16
    classes: int = 1000
    weight_bits: int = WEIGHT_BITS
    code_bits: int = CODE_BITS

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def patch_channels(self) -> int:
        """Numbers in one RGB patch."""
        return 3 * self.patch**2

    @property
    def tokens(self) -> int:
        """N of the paper: the patches and the class token."""
        return self.patches + 1

    @property
    def layers(self) -> tuple[BlockShape, ...]:
        return self.depth * (BlockShape(self.width, self.heads, self.tokens, (self.tokens**2,)),)

    @property
    def projections(self) -> tuple[Projection, ...]:
        embedding = Projection("patch_embedding", self.patches, self.patch_channels, self.width)
        return embedding, Projection("head", 1, self.width, self.classes)

    @property
    def map_elements(self) -> int:
        """Attention weights of the whole model: depth * heads * N^2."""
        return self.depth * self.heads * self.tokens**2

    @property
    def parameters(self) -> int:
        """Parameters of the float model: weights, biases, LayerNorms, class token and position table."""
        d = self.width
        block = 12 * d**2 + 13 * d
        return (self.patch_channels + 1) * d + (self.tokens + 1) * d + self.depth * block + 2 * d + (d + 1) * self.classes


@dataclass(frozen=True)
class SwinArchitecture:
    """A Swin Transformer: `depths` layers of `heads` heads a stage, each stage half the map's side and twice the width of the one
    before; square windows of `window` tokens a side, shifted by half of it in every second layer; mean pooling before the head.
    """

    name: str
    width: int
    heads: tuple[int, ...]
    depths: tuple[int, ...]
    window: int = 7
    image: int = 224
    patch: int = 4
    classes: int = 1000
    weight_bits: int = WEIGHT_BITS
    code_bits: int = CODE_BITS

    @property
    def layers(self) -> tuple[BlockShape, ...]:
        return tuple(self._layer(stage, index % 2 == 1) for stage, depth in enumerate(self.depths) for index in range(depth))

    def _layer(self, stage: int, shifted: bool) -> BlockShape:
        """A shift joins tokens of opposite edges in the last window of a row or column: they do not see each other."""
        side = self.image // self.patch >> stage
        window = min(self.window, side)
        shift = window // 2 if shifted and side > window else 0
        along = (side // window - 1) * [window**2] + [(window - shift) ** 2 + shift**2]
        return BlockShape(self.width << stage, self.heads[stage], window**2, tuple(down * across for down in along for across in along))

    @property
    def projections(self) -> tuple[Projection, ...]:
        side, d = self.image // self.patch, self.width
        embedding = Projection("patch_embedding", side**2, 3 * self.patch**2, d)
        mergings = [Projection("patch_merging", (side >> stage) ** 2, d << stage + 1, d << stage) for stage in range(1, len(self.depths))]
        return embedding, *mergings, Projection("head", 1, d << len(self.depths) - 1, self.classes)

    @property
    def map_elements(self) -> int:
        """Attention weights of the whole model, excluded pairs with them: heads * M^2 N in every layer."""
        return sum(layer.heads * layer.pairs for layer in self.layers)

    @property
    def shared_map_elements(self) -> int:
        """The same where all windows of a layer share their maps: heads * M^4."""
        return sum(layer.heads * layer.window_tokens**2 for layer in self.layers)

    @property
    def excluded_share(self) -> float:
        """Excluded pairs as a share of `map_elements`."""
        return 1 - sum(layer.heads * sum(layer.live) for layer in self.layers) / self.map_elements

    @property
    def parameters(self) -> int:
        """Parameters of the float model: weights, biases, LayerNorms and relative position tables."""
        embedding, *mergings, head = self.projections
        total = (embedding.in_channels + 3) * embedding.out_channels + (2 + head.out_channels) * head.in_channels + head.out_channels
        total += sum((each.out_channels + 2) * each.in_channels for each in mergings)
        for layer in self.layers:
            positions = (2 * isqrt(layer.window_tokens) - 1) ** 2
            total += 12 * layer.width**2 + 13 * layer.width + positions * layer.heads
        return total


ARCHITECTURES: dict[str, Architecture | SwinArchitecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("vit_small_patch16_224", width=384, heads=6),
        Architecture("vit_base_patch16_224", width=768, heads=12),
        Architecture("deit_tiny_patch16_224", width=192, heads=3),
        Architecture("deit_small_patch16_224", width=384, heads=6),
        Architecture("deit_base_patch16_224", width=768, heads=12),
        SwinArchitecture("swin_tiny_patch4_window7_224", width=96, heads=(3, 6, 12, 24), depths=(2, 2, 6, 2)),
        SwinArchitecture("swin_small_patch4_window7_224", width=96, heads=(3, 6, 12, 24), depths=(2, 2, 18, 2)),
    )
}


def architecture(name: str) -> Architecture | SwinArchitecture:
    """The architecture timm calls `name`; UserError for any other."""
    if name not in ARCHITECTURES:
        raise UserError(f"cost: expected one of {', '.join(ARCHITECTURES)} or an .eam file, got {name!r}")
    return ARCHITECTURES[name]
