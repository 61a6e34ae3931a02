"""The benchmarks' own arithmetic, and that they run where there is no GPU."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """`benchmark("growth")`: the module of that name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_slopes_are_those_of_what_was_measured(benchmark, power):
    growth = benchmark("growth")
    rows = [{"n": n, "seconds": 3 * n**power} for n in (10, 100, 1_000, 10_000)]
    found = growth.slopes(rows)
    assert found["seconds"]["exponent"] == found["seconds"]["last"] == pytest.approx(power)
    assert growth.superlinear(found) == (["seconds"] if power > 1 else [])


def test_a_floor_does_not_hide_what_grows_above_it(benchmark):
    growth = benchmark("growth")
    rows = [{"n": n, "seconds": 100 + n**2 / 1000} for n in (10, 100, 1_000, 10_000, 100_000)]
    found = growth.slopes(rows)
    assert found["seconds"]["exponent"] < found["seconds"]["last"]
    assert growth.superlinear(found) == ["seconds"]


@pytest.mark.slow
@pytest.mark.alone
def test_points_of_growth_are_measured_and_drawn(benchmark, tmp_path):
    growing, growth = benchmark("growing"), benchmark("growth")
    data = growth.archive(tmp_path / "some.zip", 80)
    start = growing.point("start", data=str(data))
    assert start["images"] == 80 and 0 < start["index"] < start["seconds"]
    few, many = (growing.point("step", rounds=1, prototypes=30, queue=queue) for queue in (64, 128))
    assert few["mib"] > 100 and 0 < few["views"] < 5
    rows = [{"n": 64, **few}, {"n": 128, **many}]
    series = {"queue": {"points": rows, "slopes": growth.slopes(rows)}}
    growth.draw(str(tmp_path / "growth.png"), series)
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_an_order_by_shard_has_each_image_once_for_any_number_of_processes(benchmark):
    scale = benchmark("scale")
    assert scale.same_batches() == {"each image once": True, "1 = 4 processes": True}
    rows = [{"images": 10.0, "bytes": 2.0**30, "seconds": 1.0}]
    billion = scale.paper({"index": rows, "order": rows})[-1]
    assert billion["index, GiB in each process"] == 1e9
    assert billion["index, seconds"] == 1e8


def test_ratios_are_drawn_so_that_above_one_is_faster(benchmark, tmp_path):
    drawing = benchmark("drawing")
    seconds = {"loop": [4.0, 6.0], "ours": [2.0, 2.0], "slow": [8.0, 12.0]}
    assert drawing._ratios(seconds, "loop", True) == {"ours": [2.0, 3.0], "slow": [0.5, 0.5]}
    rates = {"loop": [4.0, 6.0], "ours": [8.0, 6.0]}
    assert drawing._ratios(rates, "loop", False) == {"ours": [2.0, 1.0]}
    drawing.draw_rounds(str(tmp_path / "a.png"), {"case": seconds}, "s", peer="loop", less=True)
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_time_spent_is_weighted_by_the_steps_of_a_record(benchmark, tmp_path):
    lines = [(1, 9.0, 9.0), (2, 0.5, 1.5), (52, 0.1, 0.3)]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": s, "split": "train", "seconds_data": d, "seconds_step": w}) + "\n"
            for s, d, w in lines
        )
    )
    found = benchmark("records").spent(tmp_path, 1)
    assert found.steps == 51
    assert found.data == pytest.approx(0.5 + 50 * 0.1)
    assert found.step == pytest.approx(1.5 + 50 * 0.3)
    assert found.waiting == pytest.approx(5.5 / 22)


@pytest.mark.slow
def test_the_cpu_computes_what_float64_does(benchmark):
    import torch

    check = benchmark("device_check")
    device = torch.device("cpu")
    for kind in (check.losses, check.updates, check.views, check.steps):
        for what, worst, bound in kind(device):
            assert worst <= bound, what
    assert check.waits(device) is None


def test_the_ways_to_choose_labels_are_compared_seed_by_seed(benchmark, tmp_path, monkeypatch):
    import numpy as np
    from scipy.stats import ttest_rel

    suggest, record = benchmark("suggest"), tmp_path / "told.json"
    draw = np.random.default_rng(0)
    curves = {way: draw.random((6, 2)) for way in ("random", "typical")}
    table = suggest.compared(curves)
    bounds = ttest_rel(curves["typical"], curves["random"]).confidence_interval(0.95)
    half = (bounds.high - bounds.low) / 2
    assert np.allclose(table["typical"]["half_interval"], half, atol=1e-4)
    assert np.allclose(table["typical"]["difference"], bounds.high - half, atol=1e-4)
    assert table["random"]["difference"] == table["random"]["half_interval"] == [0, 0]
    # blobs: typical images find every class at once, random ones do not
    owner = draw.integers(0, 8, 400)
    features = draw.normal(size=(8, 5))[owner] * 6 + draw.normal(size=(400, 5))
    np.savez(tmp_path / "f.npz", features=features.astype(np.float32), labels=owner)
    words = ["suggest.py", "--seeds", "2", "--labels", "8", "16", "--features"]
    words += [f"blobs={tmp_path / 'f.npz'}", "--json", str(record)]
    monkeypatch.setattr(sys, "argv", [*words, "--plot", str(tmp_path / "plot.png")])
    suggest.main()
    ways = json.loads(record.read_text())["results"]["blobs"]["ways"]
    assert ways["typical"]["accuracy"][0] > 0.95 > ways["random"]["accuracy"][0]
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_no_damaged_checkpoint_is_taken_as_whole(benchmark, tmp_path, monkeypatch):
    damage, told = benchmark("damage"), tmp_path / "damage.json"
    monkeypatch.setattr(sys, "argv", ["damage.py", "--files", "48", "--json", str(told)])
    with pytest.raises(SystemExit) as ended:
        damage.main()
    found = json.loads(told.read_text())
    assert not ended.value.code and (found["taken_as_whole"], found["crashes"]) == (0, 0)
    assert sum(found["ends"].values()) == 48 and found["ends"]["refused"] > 30


@pytest.mark.slow
def test_no_name_breaks_a_command(benchmark):
    names = benchmark("names")
    assert all(
        raw and b"/" not in raw and b"\0" not in raw for k in names.KINDS.values() for raw in k
    )
    found = names.fuzz(1, 4)
    assert found["bad"] == [] and found["calls_in_all"] > 12


@pytest.mark.parametrize("name", ["gpu.sh", "gpu_quality.sh"])
def test_the_script_says_what_it_needs(name):
    for words in ([], ["--cifar", "a.zip", "--photos", "b.zip"], ["--fast"]):
        done = subprocess.run(
            ["bash", str(FOLDER / name), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and done.stderr.startswith(f"{name} ")


@pytest.mark.parametrize(("name", "minutes"), [("gpu.sh", 9), ("gpu_quality.sh", 10)])
def test_the_limits_of_all_parts_keep_a_script_below_its_minutes(name, minutes):
    lines = (FOLDER / name).read_text().splitlines()
    limits = [int(line.split()[2]) for line in lines if line.startswith(("bench ", "part "))]
    machine = 20  # seconds of the part that both have
    assert 60 * (minutes - 1) < sum(limits) + machine < 60 * minutes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "measured"), [("gpu.sh", 6), ("gpu_quality.sh", 2)])
def test_everything_for_a_gpu_runs_without_one(shared, tmp_path, monkeypatch, name, measured):
    monkeypatch.setenv("PYTHON", sys.executable)
    given = ["--cifar", str(shared / "data/cifar10.zip")]
    given += ["--photos", str(shared / "data/trashnet-subset.zip"), "--out", str(tmp_path)]
    script = ["bash", str(FOLDER / name), *given, "--device", "cpu", "--quick"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2_000:]
    ends = json.loads((tmp_path / "summary.json").read_text())
    assert all(part["exit_code"] == 0 for part in ends["parts"])
    names = {part["part"] for part in ends["parts"]} - {"machine", "unpack"}
    assert len(names) == measured
    figures = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in names}
    assert all(figures.values())
    if "knn" in figures:
        assert figures["knn"]["images"] == {"train": 500, "test": 100}
        assert 0.1 < figures["knn"]["knn"] < 0.9
        passes = figures["feature-pass"]["passes"]
        assert all(one["images_per_second"] > 0 for one in passes.values()) and len(passes) == 2


def test_arms_of_distillation_are_means_with_intervals_over_seeds(benchmark):
    distill = benchmark("distill")
    mean, half = distill.interval([0.4, 0.5, 0.6])
    assert mean == pytest.approx(0.5) and half == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert distill.interval([0.4]) == (0.4, 0.0)
    values = {"linear": 0.5, "epochs": 3, "seconds": 60.0}
    rows = [{"data": "cifar", "arm": "teacher", "seed": None, "knn": 0.7, "linear": 0.75}]
    rows += [
        {"data": "cifar", "arm": "distill", "seed": seed, "knn": knn, **values}
        for seed, knn in enumerate((0.4, 0.5, 0.6))
    ]
    assert distill.table(rows).splitlines()[2:] == [
        "| cifar | teacher | 0.700 | 0.750 | - | - |",
        "| cifar | distill | 0.500 ± 0.248 | 0.500 ± 0.000 | 3 | 60 |",
    ]
