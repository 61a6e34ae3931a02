"""The order of shapes is taken for a proof only where nothing could be exchanged."""

import pytest

from unfreeze.checkpoints.key_matching import match_keys
from unfreeze.checkpoints.shape_matching import match_by_order

# a network of five layers, one of them with a twin of the same shapes
WANTED = {
    "stem.weight": (8, 3, 3, 3),
    "norm.weight": (8,),
    "norm.bias": (8,),
    "norm.running_mean": (8,),
    "norm.running_var": (8,),
    "norm.num_batches_tracked": (),
    "blocks.0.conv.weight": (8, 8, 3, 3),
    "blocks.1.conv.weight": (8, 8, 3, 3),
    "out.weight": (16, 8, 1, 1),
    "head.weight": (10, 16),
    "head.bias": (10,),
}
THEIRS = {
    "_stem.kernel": (8, 3, 3, 3),
    "_bn.gamma": (8,),
    "_bn.beta": (8,),
    "_bn.moving_mean": (8,),
    "_bn.moving_variance": (8,),
    "_layer.3.w": (8, 8, 3, 3),
    "_layer.7.w": (8, 8, 3, 3),
    "_last.w": (16, 8, 1, 1),
    "_fc.w": (10, 16),
    "_fc.b": (10,),
}


def renamed(**new):
    return {new.get(name, name): shape for name, shape in THEIRS.items()}


def test_the_same_sequence_under_other_names_is_paired_whole():
    found = match_keys(THEIRS, WANTED)
    want = [name for name in WANTED if not name.endswith("tracked")]
    assert found.pairs == dict(zip(want, THEIRS, strict=True))
    assert (found.how, found.doubt) == ("by the order of their shapes", "")
    assert found.missing == ("norm.num_batches_tracked",) and found.unexpected == ()


def test_a_head_for_other_classes_or_none_is_no_obstacle():
    other = THEIRS | {"_fc.w": (7, 16), "_fc.b": (7,)}
    for file in (other, {n: s for n, s in THEIRS.items() if not n.startswith("_fc")}):
        found = match_by_order(file, WANTED)
        assert found.doubt == "" and len(found.pairs) == 8
        assert "head.weight" not in found.pairs


def test_what_stands_before_and_behind_is_left_alone():
    more = {"ema.decay": (1, 4), **THEIRS, "projector.w": (3, 3)}
    assert len(match_by_order(more, WANTED).pairs) == 10


@pytest.mark.parametrize(
    ("file", "says"),
    [
        # twins whose names do not say which is the first
        ({**renamed(), "_layer.3.w": None, "_layer.7.w": None}, "their order is ambiguous"),
        # the numbers fall: the order of definition is not that of the numbers
        (dict(zip([*list(THEIRS)[:5], "_layer.7.w", "_layer.3.w", *list(THEIRS)[7:]],
                  THEIRS.values(), strict=True)), "their order is ambiguous"),
        # the statistics stand where weight and bias are
        (dict(zip(["_stem.kernel", "_bn.moving_mean", "_bn.moving_variance", "_bn.gamma",
                   "_bn.beta", *list(THEIRS)[5:]], THEIRS.values(), strict=True)),
         "has another role than norm"),
        # nothing says what the vectors are
        (renamed(**{"_bn.gamma": "_bn.a0", "_bn.beta": "_bn.a1"}),
         "has another role than norm.weight"),
        # twice the same network
        ({**{f"a.{n}": s for n, s in THEIRS.items()}, **{f"b.{n}": s for n, s in THEIRS.items()}},
         "2 times"),
    ],
    ids=["words", "falling", "roles", "unknown", "twice"],
)  # fmt: skip
def test_where_another_order_is_possible_it_is_no_proof(file, says):
    if None in file.values():  # in the place of the two numbered ones
        names = ["left.w" if n == "_layer.3.w" else "right.w" if n == "_layer.7.w" else n
                 for n in file]  # fmt: skip
        file = dict(zip(names, THEIRS.values(), strict=True))
    found = match_by_order(file, WANTED)
    assert says in found.doubt and found.pairs == {}
    assert says in match_keys(file, WANTED).doubt


def test_another_sequence_is_no_match():
    names = list(THEIRS)
    names[7], names[8] = names[8], names[7]  # the head before the last layer
    assert match_by_order({name: THEIRS[name] for name in names}, WANTED) is None
    assert match_by_order({}, WANTED) is None
    assert match_by_order({"a.w": (3, 4), "b.w": (5, 6)}, {"x.weight": (3, 4)}) is None


def test_words_that_are_proved_elsewhere_tell_twins_apart():
    wanted = {
        "stem.weight": (4, 3, 3, 3),
        "a.main.weight": (8, 4, 1, 1),
        "a.short.weight": (8, 4, 1, 1),
        "b.main.weight": (16, 8, 3, 3),
        "b.short.weight": (16, 8, 1, 1),
    }
    theirs = ["s.weight", "u.path.weight", "u.skip.weight", "v.path.weight", "v.skip.weight"]
    found = dict(zip(theirs, wanted.values(), strict=True))
    assert match_by_order(found, wanted).doubt == ""
    # without the second block nothing says which word is which
    cut = {n: s for n, s in found.items() if not n.startswith("v")} | {"e.w": (5, 5), "f.w": (6, 6)}
    less = {n: s for n, s in wanted.items() if not n.startswith("b")}
    less |= {"e.weight": (5, 5), "f.weight": (6, 6)}
    assert "their order is ambiguous" in match_by_order(cut, less).doubt
