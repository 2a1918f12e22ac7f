"""The published shapes of the models the paper studies."""

from __future__ import annotations

from dataclasses import dataclass

from eamsim.errors import UserError


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
    weight_bits: int = 4

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
    def map_elements(self) -> int:
        """Attention weights of the whole model: depth * heads * N^2."""
        return self.depth * self.heads * self.tokens**2

    @property
    def parameters(self) -> int:
        """Parameters of the float model: weights, biases, LayerNorms, class token and position table."""
        d = self.width
        block = 12 * d**2 + 13 * d
        return (self.patch_channels + 1) * d + (self.tokens + 1) * d + self.depth * block + 2 * d + (d + 1) * self.classes


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("vit_small_patch16_224", width=384, heads=6),
        Architecture("vit_base_patch16_224", width=768, heads=12),
        Architecture("deit_tiny_patch16_224", width=192, heads=3),
        Architecture("deit_small_patch16_224", width=384, heads=6),
        Architecture("deit_base_patch16_224", width=768, heads=12),
    )
}


def architecture(name: str) -> Architecture:
    """The architecture timm calls `name`; UserError for any other."""
    if name not in ARCHITECTURES:
        raise UserError(f"cost: expected one of {', '.join(ARCHITECTURES)} or an .eam file, got {name!r}")
    return ARCHITECTURES[name]
