"""The full scope against torch's own counter, with fused attention off so that the attention products are seen."""

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from cost_model.models.architectures import ARCHITECTURES  # noqa: E402
from cost_model.models.paper import estimate  # noqa: E402
from cost_model.models.skeleton import skeleton  # noqa: E402
from cost_model.work.counts import count  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_full_scope_equals_half_of_torchs_flops(name, monkeypatch):
    monkeypatch.setenv("TIMM_FUSED_ATTN", "0")
    with torch.device("meta"):  # shapes alone: nothing is allocated or computed
        model = timm.create_model(name).eval()
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        images = torch.empty(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    full = counter.get_total_flops() // 2
    assert estimate(ARCHITECTURES[name], 0, "paper").macs.full == full
    assert count(skeleton(ARCHITECTURES[name])).macs.full == full
