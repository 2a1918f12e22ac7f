"""The order `kl`: what freezing one whole head does to the answers, end to end, on the integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eamsim import engine
from eamsim.inputs.images import ImageSet
from eamsim.jobs.search.budget import SEARCH_IMAGES, cross_entropy, log_softmax
from eamsim.jobs.search.budget_search import BATCH, logit_scale
from reference.attention.collect import means
from reference.attention.entropy import AttentionSummary
from reference.attention.freeze import FrozenMap
from reference.lowering.frozen import with_frozen
from reference.lowering.program import lower
from reference.quantisation.repq import Calibrated

if TYPE_CHECKING:
    from eamsim.progress import Progress


def head_scores(calibrated: Calibrated, statistics: AttentionSummary, images: ImageSet, progress: Progress) -> list[np.ndarray]:
    """Per block float64 [maps, tokens, tokens]: the divergence KL(p || p') in nats that freezing the whole head, it alone, makes.

    p: the softmax of the integer logits with nothing frozen, p' that with this head's mean map (`renormalised`), their mean over
    SEARCH_IMAGES of the images. Infinite where a pair is excluded.
    """
    dense = lower(calibrated, softmax="renormalised")
    scale, batches = logit_scale(calibrated, dense), list(images.spread(min(SEARCH_IMAGES, len(images))).batches(BATCH))
    live = [
        np.broadcast_to(True if maps.excluded is None else ~maps.excluded, mean.shape)
        for maps, mean in zip(statistics.maps.values(), means(statistics), strict=True)
    ]

    def answers(frozen: list[FrozenMap | None]) -> np.ndarray:
        run = engine.Engine(with_frozen(dense, frozen, calibrated.attention)).run
        return scale * np.concatenate([run(batch) for batch in batches])

    nothing: list[FrozenMap | None] = [None] * len(live)
    base = answers(nothing)
    truth = np.exp(log_softmax(base))
    found, least = [np.full(each.shape, np.inf) for each in live], cross_entropy(base, truth)
    with progress("heads frozen, one by one", sum(op.heads for op in dense.attentions)) as advance:
        for block, (op, mean) in enumerate(zip(dense.attentions, means(statistics), strict=True)):
            for head in range(op.heads):
                own = live[block] & (np.arange(len(mean)) % op.heads == head)[:, None, None]
                frozen = [*nothing[:block], FrozenMap(own, mean.astype(np.float64)), *nothing[block + 1 :]]
                found[block][own] = cross_entropy(answers(frozen), truth) - least
                advance(1)
    return found
