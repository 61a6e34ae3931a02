import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfreeze.checkpoints.key_matching import match_keys

WANTED = {
    "conv1.weight": (8, 3, 7, 7),
    "bn1.weight": (8,),
    "bn1.running_mean": (8,),
    "bn1.num_batches_tracked": (),
    "layer1.0.conv1.weight": (8, 8, 3, 3),
    "layer1.1.conv1.weight": (8, 8, 3, 3),
    "layer2.0.conv1.weight": (16, 8, 3, 3),
    "features.0.weight": (4, 4),
    "features.3.weight": (4, 4),
    "fc.weight": (10, 16),
    "fc.bias": (10,),
}
PREFIXES = (
    "",
    "module.",
    "module.module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "model.",
    "backbone.",
    "encoder_q.",
    "module.encoder_q.",
    "student.backbone.",
    "model.encoder.net.",
)


def under(prefix, shapes=WANTED):
    return {prefix + name: shape for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_pains_2_and_3_every_known_wrapper_is_taken_off(prefix):
    found = match_keys(under(prefix), WANTED)
    assert found.prefix == prefix
    assert found.pairs == {name: prefix + name for name in WANTED}
    assert found.share == 1.0
    assert found.missing == found.unexpected == found.mismatched == ()


parts = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)
trees = st.dictionaries(
    st.lists(st.one_of(parts, st.integers(0, 9).map(str)), min_size=1, max_size=4).map(".".join),
    st.lists(st.integers(1, 5), max_size=3).map(tuple),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(trees, st.lists(parts, max_size=3))
def test_law_any_leading_parts_are_found(wanted, leading):
    prefix = "".join(f"{part}." for part in leading)
    found = match_keys(under(prefix, wanted), wanted)
    assert found.share == 1.0
    assert not found.missing


@settings(max_examples=60, deadline=None)
@given(trees, trees)
def test_law_whatever_is_in_the_file_pairs_agree_in_shape_and_nothing_is_counted_twice(a, b):
    result = match_keys(a, b)
    assert all(a[theirs] == b[own] for own, theirs in result.pairs.items())
    clashing = [clash.wanted for clash in result.mismatched]
    assert sorted([*result.pairs, *result.missing, *clashing]) == sorted(b)
    used = [*result.pairs.values(), *(clash.found for clash in result.mismatched)]
    assert sorted([*used, *result.unexpected]) == sorted(a)
    sizes = {name: math.prod(shape) for name, shape in b.items()}
    whole = sum(sizes.values())
    assert result.share == pytest.approx(sum(sizes[name] for name in result.pairs) / whole)


def test_a_wrapper_inside_the_name_is_passed_over():
    found = {
        "features.module.0.weight": (4, 4),
        "features.module.3.weight": (4, 4),
        "fc.weight": (10, 16),
    }
    wanted = {name.replace("module.", ""): shape for name, shape in found.items()}
    assert match_keys(found, wanted).share == 1.0
    assert match_keys(under("module.", found), wanted).share == 1.0


def test_swav_a_published_file_gives_the_backbone_and_names_the_rest():
    published = under("module.") | {
        "module.projection_head.0.weight": (16, 16),
        "module.prototypes.weight": (30, 16),
    }
    del published["module.fc.weight"], published["module.fc.bias"]
    result = match_keys(published, WANTED)
    assert result.prefix == "module."
    assert result.missing == ("fc.weight", "fc.bias")
    assert result.unexpected == ("module.projection_head.0.weight", "module.prototypes.weight")


def test_replacing_a_word_everywhere_would_break_this_name():
    # the reference strips "module." with str.replace: "submodule.weight" would become "subweight"
    wanted = {"submodule.weight": (3, 3), "fc.weight": (2, 3)}
    assert match_keys(under("module.", wanted), wanted).pairs == {
        name: f"module.{name}" for name in wanted
    }


def test_a_file_without_the_leading_part_fits_too():
    wanted = {"features.0.weight": (4, 3), "features.2.weight": (5, 4), "head.weight": (2, 5)}
    result = match_keys({"0.weight": (4, 3), "2.weight": (5, 4)}, wanted)
    assert result.pairs == {"features.0.weight": "0.weight", "features.2.weight": "2.weight"}


def test_densenet_files_write_a_dot_where_the_network_has_none():
    wanted = {"block.norm1.weight": (4,), "block.conv1.weight": (4, 4), "conv0.weight": (4, 3)}
    found = {"block.norm.1.weight": (4,), "block.conv.1.weight": (4, 4), "conv0.weight": (4, 3)}
    assert match_keys(found, wanted).share == 1.0
    assert match_keys(under("module.", found), wanted).share == 1.0


def test_of_two_equal_copies_the_averaged_one_is_taken():
    for copies, best in (
        (("student.", "teacher."), "teacher."),
        (("net.", "net_ema."), "net_ema."),
    ):
        assert match_keys(under(copies[0]) | under(copies[1]), WANTED).prefix == best


def test_of_moco_the_query_encoder_is_taken():
    assert match_keys(under("encoder_q.") | under("encoder_k."), WANTED).prefix == "encoder_q."


def test_pain_5_another_width_is_a_mismatch_by_name():
    found = WANTED | {"fc.weight": (1000, 16), "fc.bias": (1000,)}
    result = match_keys(found, WANTED)
    assert [(one.wanted, one.found_shape, one.wanted_shape) for one in result.mismatched] == [
        ("fc.weight", (1000, 16), (10, 16)),
        ("fc.bias", (1000,), (10,)),
    ]
    assert not result.missing
    assert not result.unexpected


def test_nothing_in_common():
    result = match_keys({"a.weight": (1, 2)}, {"b.bias": (3,)})
    assert (result.share, result.prefix, result.missing) == (0.0, "", ("b.bias",))


def test_nothing_at_all():
    assert match_keys({}, {}).share == 0.0


def test_children_by_number_are_found_whatever_holds_no_entry_in_between():
    # nn.Sequential(*list(resnet.children())[:-1]): the ReLU is 2, the pooling 3
    at = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "features": "7"}
    found = {
        f"backbone.{at[name.partition('.')[0]]}.{name.partition('.')[2]}": shape
        for name, shape in WANTED.items()
        if not name.startswith("fc.")
    } | {"projection_head.layers.0.weight": (16, 16), "prototypes.heads.0.weight": (30, 16)}
    result = match_keys(found, WANTED)
    assert result.prefix == "backbone."
    assert result.pairs["layer1.1.conv1.weight"] == "backbone.4.1.conv1.weight"
    assert result.pairs["conv1.weight"] == "backbone.0.weight"
    assert result.missing == ("fc.weight", "fc.bias")
    assert result.unexpected == ("projection_head.layers.0.weight", "prototypes.heads.0.weight")
    # without the ReLU and the pooling among the children, as lightly's own ResNet has them
    dense = {"0": "0", "1": "1", "4": "2", "5": "3", "7": "4"}
    packed = {
        ".".join([name.split(".")[0], dense[name.split(".")[1]], *name.split(".")[2:]]): shape
        for name, shape in found.items()
        if name.startswith("backbone.")
    }
    assert match_keys(packed, WANTED).missing == ("fc.weight", "fc.bias")


def test_numbers_that_fit_nothing_change_nothing():
    found = {"0.weight": (5, 5), "3.weight": (6, 6)}
    result = match_keys(found, WANTED)
    assert (result.pairs, result.prefix) == ({}, "")


def test_one_part_by_another_word_is_found_where_all_else_agrees():
    wanted = WANTED | {
        "layer2.0.downsample.0.weight": (16, 8, 1, 1),
        "layer2.0.downsample.1.weight": (16,),
    }
    found = {name.replace("downsample", "shortcut"): shape for name, shape in wanted.items()}
    assert match_keys(under("module.", found), wanted).share == 1.0
    # another shape is another layer, and two words for one are none
    found["layer2.0.shortcut.0.weight"] = (16, 8, 3, 3)
    assert match_keys(found, wanted).missing == ("layer2.0.downsample.0.weight",)


def test_a_head_is_not_taken_for_another_head():
    found = WANTED | {"projector.weight": (10, 16)}
    del found["fc.weight"]
    assert match_keys(found, WANTED).missing == ("fc.weight",)


def test_two_foreign_words_for_one_of_ours_are_no_error():
    wanted = {f"a.{n}.conv.weight": (2, n + 1, 1, 1) for n in range(3)} | {"stem.weight": (64, 3)}
    found = {"stem.weight": (64, 3), "a.0.one.weight": (2, 1, 1, 1), "a.1.one.weight": (2, 2, 1, 1)}
    found |= {"a.2.two.weight": (2, 3, 1, 1)}
    assert set(match_keys(found, wanted).pairs) >= {"a.0.conv.weight", "a.1.conv.weight"}
