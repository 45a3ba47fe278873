"""Keys of the original PanopticFCN project (on Detectron2) as this package spells them."""

import re

from segforge.architectures.core.base import StateDict

# Its stem and stages carry norms inside their convolutions; its towers count from 1.
RULES = (
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"^backbone\.bottom_up\.stem\.conv1\.", "backbone.conv1."),
    (r"^backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.", r"backbone.layer<\1-1>.\2.bn\3."),
    (r"^backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.", r"backbone.layer<\1-1>.\2.conv\3."),
    (r"^backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.", r"backbone.layer<\1-1>.\2.downsample.1."),
    (r"^backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.", r"backbone.layer<\1-1>.\2.downsample.0."),
    (r"^backbone\.fpn_(lateral|output)(\d)\.", r"fpn.\1.<\2-2>."),
    (r"^backbone\.top_block\.(p[67])\.", r"fpn.\1."),
    # Of its levels, all but the first have an enlargement after each convolution, which counts too.
    (r"^semantic_fpn\.p(\d)\.(\d)\.norm\.", r"semantic_fpn.towers.<\1-2>.<\2/2>.1."),
    (r"^semantic_fpn\.p(\d)\.(\d)\.", r"semantic_fpn.towers.<\1-2>.<\2/2>.0."),
    (r"^(position)_head\.\1_head\.\1_head_head_(\d)\.offset_mask_conv\.", r"\1_head.tower.<\2-1>.0.offset_mask."),
    (r"^(position|kernel)_head\.\1_head\.\1_head_head_(\d)\.(?:dcnv2\.)?norm\.", r"\1_head.tower.<\2-1>.1."),
    (r"^(position|kernel)_head\.\1_head\.\1_head_head_(\d)\.(?:dcnv2\.)?", r"\1_head.tower.<\2-1>.0."),
    (r"^kernel_head\.out_conv\.", "kernel_head.out."),
    (r"^feature_encoder\.encode_head\.encode_head_head_(\d)\.", r"feature_encoder.<\1-1>.0."),
    (r"^(thing|stuff)_generator\.embed_extractor\.", r"\1_generator."),
    (r"^pixel_(mean|std)$", ""),
)
ARITHMETIC = re.compile(r"<(\d+)([-/])(\d+)>")


def from_detectron2(weights: StateDict) -> StateDict:
    """`weights` under this package's keys, values untouched; unchanged when they are not of that project.

    A key that no rule knows stays as it is, so that loading names it. The network they fit takes BGR
    images less the mean in RGB order, undivided: recipes spell that quirk out in `input`.
    """
    if not any(key.startswith("backbone.bottom_up.") for key in weights):
        return weights
    renamed = {_renamed(key): value for key, value in weights.items()}
    renamed.pop("", None)  # what no part of the network holds
    return renamed


def _renamed(key: str) -> str:
    for pattern, replacement in RULES:
        new, fits = re.subn(pattern, replacement, key)
        if fits:
            return ARITHMETIC.sub(_computed, new)
    return key


def _computed(match: re.Match[str]) -> str:
    left, operator, right = int(match[1]), match[2], int(match[3])
    return str(left - right if operator == "-" else left // right)
