"""Translates parameter names between libraries (transformers, timm, torchvision) by rules.

Transformers' ViT, DeiT and DINOv2 store query, key and value separately where timm has one matrix;
its ResNet has the shortcut before the layers. torchvision and timm use different names for the
same parameters of a vision transformer.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

Shape = tuple[int, ...]
Rules = Sequence[tuple[str, str]]

_QUERY = re.compile(r"(.*\.)?(query|q_proj|to_q|q_lin|wq|q)\.(weight|bias)")
_KEY_VALUE = {
    "query": ("key", "value"),
    "q_proj": ("k_proj", "v_proj"),
    "to_q": ("to_k", "to_v"),
    "q_lin": ("k_lin", "v_lin"),
    "wq": ("wk", "wv"),
    "q": ("k", "v"),
}

# (pattern of the name without its prefix, timm's name)
_TRANSFORMERS_VIT: Rules = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"(?:encoder\.)?layers?\.(\d+)\.(?:layernorm_before|norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"(?:encoder\.)?layers?\.(\d+)\.(?:layernorm_after|norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"(?:encoder\.)?layers?\.(\d+)\.attention(?:\.attention)?\.qkv\.(\w+)",
     r"blocks.\1.attn.qkv.\2"),
    (r"(?:encoder\.)?layers?\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(\w+)",
     r"blocks.\1.attn.proj.\2"),
    (r"(?:encoder\.)?layers?\.(\d+)\.(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(\w+)",
     r"blocks.\1.mlp.fc1.\2"),
    (r"(?:encoder\.)?layers?\.(\d+)\.(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.(\w+)",
     r"blocks.\1.mlp.fc2.\2"),
    (r"(?:encoder\.)?layers?\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.(\w+)", r"norm.\1"),
    (r"(?:cls_)?classifier\.(\w+)", r"head.\1"),
    (r"distillation_classifier\.(\w+)", r"head_dist.\1"),
)  # fmt: skip
_TORCHVISION_VIT: Rules = (
    (r"class_token", "cls_token"),
    (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)",
     r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)",
     r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(\w+)", r"norm.\1"),
    (r"heads\.head\.(\w+)", r"head.\1"),
)  # fmt: skip
_TIMM_VIT: Rules = (
    (r"cls_token", "class_token"),
    (r"patch_embed\.proj\.(\w+)", r"conv_proj.\1"),
    (r"pos_embed", "encoder.pos_embedding"),
    (r"blocks\.(\d+)\.norm(\d)\.(\w+)", r"encoder.layers.encoder_layer_\1.ln_\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(\w+)",
     r"encoder.layers.encoder_layer_\1.self_attention.in_proj_\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)",
     r"encoder.layers.encoder_layer_\1.self_attention.out_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"encoder.layers.encoder_layer_\1.mlp.0.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"encoder.layers.encoder_layer_\1.mlp.3.\2"),
    (r"norm\.(\w+)", r"encoder.ln.\1"),
    (r"head\.(\w+)", r"heads.head.\1"),
)  # fmt: skip
_PARTS = {"convolution": ("conv", "downsample.0"), "normalization": ("bn", "downsample.1")}


def translated_names(
    file_shapes: Mapping[str, Shape],
) -> Iterator[tuple[str, dict[str, tuple[str, ...]]]]:
    """(library, translated name -> names in the file) for each set of rules that applies.

    Tensors of several names are to be concatenated along their first dimension. Names without a
    rule keep their own name.
    """
    fused_names = fuse_qkv(file_shapes)
    plain = {name: (name,) for name in file_shapes}
    vit = _translate(fused_names, _TRANSFORMERS_VIT)
    if vit and any(n.endswith("attn.qkv.weight") for n in vit):
        yield "transformers", vit
        yield "transformers", _translate(vit, _TIMM_VIT)
    resnet = _resnet(file_shapes)
    if resnet:
        yield "transformers", resnet
    for owner, rules, marker in (
        ("torchvision", _TORCHVISION_VIT, "in_proj_weight"),
        ("timm", _TIMM_VIT, "attn.qkv.weight"),
    ):
        if any(name.endswith(marker) for name in file_shapes):
            yield owner, _translate(plain, rules)
    if len(fused_names) < len(plain):
        yield "a library with separate query, key and value", fused_names


def fuse_qkv(file_shapes: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    """New name -> names in the file, with query, key and value of a layer as one `qkv`."""
    joined: dict[str, tuple[str, ...]] = {}
    used: set[str] = set()
    for name in file_shapes:
        match = _QUERY.fullmatch(name)
        key, value = _KEY_VALUE[match[2]] if match else ("", "")
        start, end = ((match[1] or ""), match[3]) if match else ("", "")
        parts = (name, f"{start}{key}.{end}", f"{start}{value}.{end}")
        if match and all(file_shapes.get(part) == file_shapes[name] for part in parts):
            joined[f"{start}qkv.{end}"] = parts
            used.update(parts)
        elif name not in used:
            joined[name] = (name,)
    return {new: olds for new, olds in joined.items() if len(olds) > 1 or olds[0] not in used}


def concatenated_shape(names: tuple[str, ...], file_shapes: Mapping[str, Shape]) -> Shape:
    """The shape of tensors concatenated along their first dimension."""
    first = file_shapes[names[0]]
    if len(names) == 1:
        return first
    return (sum(file_shapes[name][0] for name in names), *first[1:])


def _translate(names: Mapping[str, tuple[str, ...]], rules: Rules) -> dict[str, tuple[str, ...]]:
    """Names translated by the first rule that matches the end of each; {} if none matches."""
    renamed: dict[str, tuple[str, ...]] = {}
    matches = 0
    for name, olds in names.items():
        for pattern, template in rules:
            match = re.fullmatch(rf"(?:.*\.)?{pattern}", name)
            if match:
                matches += 1
                renamed.setdefault(match.expand(template), olds)
                break
        else:
            renamed[name] = olds
    return renamed if matches else {}


def _resnet(file_shapes: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    """Transformers' ResNet in torchvision's names; {} if it is not one."""
    renamed: dict[str, tuple[str, ...]] = {}
    matches = 0
    for name in file_shapes:
        new = _resnet_name(name)
        matches += new != name
        renamed[new] = (name,)
    return renamed if matches > 1 else {}


def _resnet_name(name: str) -> str:
    stem = re.fullmatch(r"(?:.*\.)?embedder\.embedder\.(convolution|normalization)\.(\w+)", name)
    if stem:
        return f"{_PARTS[stem[1]][0]}1.{stem[2]}"
    match = re.fullmatch(
        r"(?:.*\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)"
        r"\.(convolution|normalization)\.(\w+)",
        name,
    )
    if match is None:
        return re.sub(r"^classifier\.1\.", "fc.", name)
    block, (word, shortcut) = f"layer{int(match[1]) + 1}.{match[2]}", _PARTS[match[4]]
    part = shortcut if match[3] is None else f"{word}{int(match[3]) + 1}"
    return f"{block}.{part}.{match[5]}"
