"""The configuration: what is refused, and in which words; and that everything in conf/ and sweeps/ composes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fovea_detr.compose import load_config
from fovea_detr.config.local import with_local
from fovea_detr.config.schema import AXES, CONF_DIR, Config, is_infrastructure, leaves
from fovea_detr.errors import ConfigError
from fovea_detr.runs.identity import identity
from fovea_detr.runs.points import point_name
from fovea_detr.runs.settings import settings

SWEEPS_DIR = CONF_DIR.parent / "sweeps"
YAMLS = sorted({*CONF_DIR.rglob("*.yaml"), *SWEEPS_DIR.glob("*.yaml")} - {CONF_DIR / "local.yaml"})

# The nine published commands: dynamic_scale, mixture, smooth, epochs, lr_drop.
PUBLISHED = {
    "focal_300_type1_no_scale": ("type1", "none", 8, 50, 40),
    "focal_300_type3_xy_scale": ("type3", "none", 8, 50, 40),
    "focal_300_type4_covarince_scale": ("type4", "none", 8, 50, 40),
    "focal_300_type2_scale_head_mixture": ("type2", "head", 8, 50, 40),
    "focal_300_type2_scale_query_mixture": ("type2", "query", 8, 50, 40),
    "focal_300_type2_single_scale_smooth_4": ("type2", "none", 4, 50, 40),
    "focal_300_type2_single_scale_smooth_16": ("type2", "none", 16, 50, 40),
    "focal_300_type2_scale_query_mixture_150": ("type2", "query", 8, 150, 100),
    "focal_300_type2_scale_query_mixture_500": ("type2", "query", 8, 500, 400),
}


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


CONTROLS = ("focal_300_type2_single_scale_smooth_8", "focal_300_no_fovea")  # that the published list lacks


def axes(config: Config) -> tuple[Any, ...]:
    """What the published commands vary, in the order of PUBLISHED."""
    schedule = config.schedule
    scale, mixture = config.dynamic_scale["name"], config.mixture["name"]
    return scale, mixture, config.fovea.smooth, schedule.epochs, schedule.lr_drop


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("foo=1", "unknown key 'foo'"),
        ("model.hiden=128", "unknown key 'model.hiden'"),
        ("+foo=1", "Key 'foo' not in"),
        ("+model.foo=1", "Key 'foo' not in"),
        ("model=fovea_r18", "model=fovea_r18: there is no such value; choose detr_focal_r50, "),
        ("dynamic_scale=type9", "dynamic_scale=type9: there is no such value; choose type1, type2, type3, type4"),
        ("kernel=laplace dynamic_scale=type4", "kernel=laplace does not work with dynamic_scale=type4: choose "),
        ("kernel=laplace dynamic_scale=type5", "choose dynamic_scale=type1, type2, type3 or another kernel"),
        ("kernel=box", "choose gaussian, laplace"),
        ("fovea.cell_centre=middle", "fovea.cell_centre: Value 'middle'"),
        ("mixture=heads", "choose head, head_query, none, query"),
        ("smooth=5", "any other number: fovea.smooth="),
        ("schedule=", "choose 50ep, 150ep"),
        ("experiment=nope", "focal_300_type1_no_scale"),
        ("sweeps=nope", "choose dynamic_scale, masks, mixture"),
        ("data.panoptic_root=/x", "is read by data=coco_panoptic alone"),
        ("data=coco_panoptic data.val_fraction=0.1", "does not work with data=coco_panoptic"),
        ("data.masks=true", "data.masks=True follows model.masks"),
        ("data=coco_panoptic model.masks=true", 'needs the class "no object", which a focal loss does not have'),
        (
            "data=coco_panoptic model=detr_r50 model.masks=true panoptic.score=sigmoid",
            "panoptic.score=sigmoid does not",
        ),
        ("data=coco_panoptic model.masks=true panoptic.score=sigmoid", "needs a panoptic.threshold=SCORE of its own"),
        ("data=coco_panoptic model=detr_r50 model.masks=true", "evaluation.batch_size=4 stretches the masks"),
        ("panoptic.threshold=1.5", "is a score, 0..1"),
        ("panoptic.score=best", "is not one of softmax, sigmoid"),
        ("model.hidden=big", "model.hidden: Value 'big' of type 'str' could not be converted to Integer"),
        ("schedule.epochs=1.5", "schedule.epochs: Value '1.5' of type 'float'"),
        ("model.dc5=maybe", "not a valid bool"),
        ("seed=null", "seed: Incompatible value 'None'"),
        ("model=[fovea_r50", "no viable alternative"),
        ("dynamic_scale=type1,type2", "add -m"),
        ("mode=test", "mode=test is not one of train, eval"),
        ("model.backbone=vgg16", "is not one of resnet18"),
        ("device=gpu", "device=gpu is not one of auto, cpu, cuda"),
        ("model.heads=3", "model.heads=3 does not divide model.hidden=256"),
        ("model.hidden=10 model.heads=2", "must be a multiple of 4"),
        ("model.num_queries=0", "must be at least 1"),
        ("model.dropout=1", "model.dropout=1.0 must be in 0..1"),
        ("model.backbone=resnet18 model.dc5=true", "model.dc5=true needs dilated bottlenecks"),
        ("model.backbone=tiny", "set model.backbone_weights=none"),
        ("model.backbone=swin_t compile=true", "torch.compile does not work with model.backbone=swin_t"),
        ("model.backbone=swin_t model.dc5=true", "model.backbone=resnet50 or resnet101, not swin_t"),
        ("model.backbone=convnext_tiny model.batch_norm=trainable", "convnext_tiny has no batch norm; set model.batch"),
        ("model.backbone_weights=nowhere.pth", "model.backbone_weights=nowhere.pth: no such file"),
        ("fovea.smooth=-8", "fovea.smooth=-8.0 must be above 0"),
        ("fovea.smooth=nan", "must be above 0"),
        ("fovea.smooth=wide", "fovea.smooth: Value 'wide'"),
        ("schedule.lr=1e-3", r"10 times the usual one: did you mean schedule.lr=0.0001?"),
        ("experiment=tiny schedule.lr=0.015", "did you mean schedule.lr=0.0015?"),
        ("schedule.lr=0", "must be above 0"),
        ("schedule.lr_drop=50", "is not inside the run (schedule.epochs=50)"),
        ("schedule.epochs=30", "schedule.lr_drop=40 is not inside the run"),
        ("schedule.lr_drop=null", "schedule.lr_drop is not set"),
        ("schedule.warmup=2", "is a fraction of all steps"),
        ("schedule.weight_decay=-1", "must not be negative"),
        ("schedule.batch_size=0", "must be at least 1"),
        ("data.num_classes=0", "must be at least 1"),
        ("data.long_side=256", "data.long_side=256 has no effect with data.recipe=coco: add data.recipe=tiny"),
        ("data=shapes data.long_side=0", "data.long_side=0 must be at least 1"),
        ("experiment=tiny data.root=/my/data", "add data=coco to train on your own data, or remove data.root"),
        ("evaluation.backend=cocoapi", "evaluation.backend=cocoapi is not one of hotcoco, pycocotools"),
        ("data=shapes data.recipe=large", "is not one of coco, tiny"),
        ("threads=0", "threads=0 must be at least 1"),
        ("mode=eval", "mode=eval has nothing to evaluate: add weights=PATH"),
        ("mode=eval weights=nowhere.pth", "weights=nowhere.pth: there is no such file"),
        ("weights=/", "there is no such file"),
        ("cluster.gpus=0", "must be at least 1"),
        ("checkpoint.minutes=0", "must be above 0"),
        ("cluster.hours=0.05 cluster.signal_minutes=3", "a job would be stopped as soon as it starts; raise the hours"),
        ("cluster.stall_minutes=0", "must be above 0"),
        ("cluster.max_restarts=-1", "cluster.max_restarts=-1 must not be negative"),
        ("study=a/b", "give it a name without / that begins with no dot"),
        ("study=..", "give it a name without / that begins with no dot"),
    ],
)
def test_refused_in_one_line(overrides, words):
    with pytest.raises(ConfigError) as refused:
        load_config(overrides.split())
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


# ---- what is taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        ("smooth=4", "fovea.smooth", 4.0),
        ("smooth='16'", "fovea.smooth", 16.0),
        ("fovea.smooth=6.5", "fovea.smooth", 6.5),
        ("smooth=4 fovea.smooth=6.5", "fovea.smooth", 6.5),
        ("schedule.lr=9e-4", "schedule.lr", 9e-4),
        ("schedule.lr=1e-3 schedule.usual_lr=1e-3", "schedule.lr", 1e-3),
        ("schedule.lr_backbone=0", "schedule.lr_backbone", 0.0),
        ("schedule.clip=0", "schedule.clip", 0.0),
        ("evaluation.backend=pycocotools", "evaluation.backend", "pycocotools"),
        ("schedule.batch_size=2", "evaluation.batch_size", 2),
        ("model.encoder_layers=0", "model.encoder_layers", 0),
        ("model=fovea_r50_dc5", "model.dc5", True),
        ("model.backbone=convnext_tiny", "model.batch_norm", "frozen"),
        ("experiment=tiny data=coco data.root=/my/data", "data.name", "coco"),
        ("model=detr_focal_r50", "model.fovea", False),
        ("schedule.kind=cosine schedule.lr_drop=null", "schedule.lr_drop", None),
        ("mixture=head_query", "mixture._target_", "fovea_detr.fovea.mixture.HalfTheHeadsAndQueries"),
        ("kernel=laplace dynamic_scale=type3", "kernel.name", "laplace"),
        ("kernel=laplace dynamic_scale=type4 model.fovea=false", "kernel.name", "laplace"),
        ("fovea.cell_centre=true", "fovea.cell_centre", True),
        ("experiment=own data.root=/my/data", "data.long_side", 256),
        ("experiment=own data.root=/my/data model=detr_focal_tiny", "model.num_queries", 100),
    ],
)
def test_taken(overrides, key, value):
    assert leaves(load_config(overrides.split()))[key] == value


def test_weights_that_exist_are_taken(tmp_path):
    (tmp_path / "best.pth").touch()
    config = load_config(["mode=eval", f"weights={tmp_path}/best.pth"])
    assert config.weights == f"{tmp_path}/best.pth"


@pytest.mark.parametrize("group", [*AXES, "model", "smooth", "schedule", "data", "cluster"])
def test_every_value_of_a_group_composes_under_its_own_name(group):
    for name in names(CONF_DIR / group):
        config = load_config([f"{group}={name}"])
        node = {"smooth": {"name": f"{config.fovea.smooth:g}"}, **leaves(config)}
        assert node.get(f"{group}.name", node["smooth"]["name"]) == name


def test_defaults_are_written_down_twice_and_agree():
    by_class, composed = leaves(Config()), leaves(load_config())
    assert set(by_class) - set(composed) == set()
    beyond = {key.partition(".")[0] for key in set(composed) - set(by_class)}
    assert beyond <= set(AXES), "the axes have no default in the dataclasses"
    assert {key: composed[key] for key in by_class} == by_class | {"schedule.total_batch": 16}, (
        "the published recipes fix the total batch; a schedule that says nothing, as of older versions, does not"
    )


def test_the_base_run():
    config = load_config()
    assert axes(config) == ("type2", "none", 8, 50, 40)
    assert (config.model.name, config.model.num_queries, config.data.name) == ("fovea_r50", 300, "coco")
    cluster, schedule = config.cluster, config.schedule
    assert (cluster.partition, cluster.nodes, cluster.gpus, cluster.cpus) == ("vc_research", 1, 4, 32)
    assert cluster.gpus * schedule.batch_size == schedule.usual_total_batch == 16


# ---- conf/local.yaml and COCO_ROOT -------------------------------------------------------------------------------

LOCAL = """
data: { root: /local/coco, workers: 9 }
cluster: { partition: mine, extra: { exclude: node1 } }
tracker: tensorboard
"""


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a text as the personal file of this test."""

    def write(text: str) -> Path:
        path = tmp_path / "local.yaml"
        path.write_text(text)
        monkeypatch.setenv("FOVEA_LOCAL", str(path))
        return path

    return write


@pytest.mark.parametrize(
    ("overrides", "variable", "changed"),
    [
        ([], None, {}),
        ([], "/variable/coco", {"data.root": "/variable/coco"}),
        (["data.root=/typed/coco"], "/variable/coco", {"data.root": "/typed/coco"}),
        (["data=coco", "data.workers=4"], None, {"data.workers": 4}),
        (["data.root=null"], None, {"data.root": None}),
        (["data.val.annotations=/my/val.json", "data.val.images=/my"], "/variable/coco", {"data.root": None}),
        (
            ["cluster.partition=vc_research", "tracker=none"],
            None,
            {"cluster.partition": "vc_research", "tracker": "none"},
        ),
        (["cluster=vc_research"], None, {"cluster.partition": "vc_research", "cluster.extra.exclude": None}),
    ],
)
def test_local_values_are_used_where_the_command_line_has_none(
    local: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    variable: str | None,
    changed: dict[str, Any],
) -> None:
    without = load_config(overrides)
    local(LOCAL)
    if variable:
        monkeypatch.setenv("COCO_ROOT", variable)
    values = leaves(load_config(overrides))
    expected = {"data.root": "/local/coco", "data.workers": 9, "tracker": "tensorboard", "cluster.partition": "mine"}
    expected |= {"cluster.extra.exclude": "node1"} | changed
    assert {key: values.get(key) for key in expected} == expected
    assert {**values, **leaves(without)}.items() >= leaves(without).items()
    assert identity(settings(without)) == identity(settings(load_config(overrides)))


def test_a_reader_of_ones_own_takes_the_local_root_and_not_that_of_coco(
    local: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    local(LOCAL)
    monkeypatch.setenv("COCO_ROOT", "/variable/coco")
    composed = OmegaConf.create({"data": {"name": "voc", "root": None}, "cluster": {}})
    assert with_local(composed, []).data.root == "/local/coco"


def test_the_environment_variable_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCO_ROOT", "/variable/coco")
    assert load_config().data.root == "/variable/coco"
    monkeypatch.setenv("COCO_ROOT", "")
    assert load_config().data.root is None


@pytest.mark.parametrize("overrides", [["experiment=tiny"], ["data=shapes"]])
def test_generated_data_takes_nothing_from_the_local_file(
    local: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    without = load_config(overrides)
    local(LOCAL)
    monkeypatch.setenv("COCO_ROOT", "/variable/coco")
    assert load_config(overrides) == without


def test_the_local_file_may_name_a_cluster(local: Callable[[str], Path]) -> None:
    local("cluster: vc_research")
    assert load_config().cluster == Config().cluster


@pytest.mark.parametrize("text", ["", "# nothing\n", (CONF_DIR / "local.example.yaml").read_text()])
def test_these_local_files_are_valid(local: Callable[[str], Path], text: str) -> None:
    local(text)
    assert load_config().data.root == ("/data/coco" if "/data/coco" in text else None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1", "seed may not stand there, only what says where and how runs are carried out"),
        ("model: { dropout: 0.2 }", "model.dropout may not stand there"),
        ("evaluation: { batch_size: 1 }", "evaluation.batch_size may not stand there"),
        ("data: { recipe: tiny }", "data.recipe may not stand there"),
        ("data: null", "field 'data' is not Optional; see conf/local.example.yaml"),
        ("study: mine", "study may not stand there"),
        ("runs: /scratch", "runs may not stand there"),
        ("cluster: { gpu: 4 }", "Key 'gpu' not in 'Cluster'"),
        ("cluster: { gpus: many }", "Value 'many'"),
        ("cluster: nowhere", "nowhere.yaml"),
        ("data: [root", "while parsing"),
        ("- data", "local.yaml: "),
        ("data", "local.yaml: "),
        ("data: { root: '${oc.env:NOT_SET_AT_ALL}' }", "NOT_SET_AT_ALL"),
    ],
)
def test_a_wrong_local_file_is_refused_in_one_line(local: Callable[[str], Path], text: str, words: str) -> None:
    path = local(text)
    with pytest.raises(ConfigError) as refused:
        load_config()
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_local_file_that_was_named_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_LOCAL", "/nowhere/local.yaml")
    with pytest.raises(ConfigError, match=r"/nowhere/local\.yaml"):
        load_config()


# ---- experiments and sweeps --------------------------------------------------------------------------------------


def test_there_is_an_experiment_for_each_published_command():
    """Other recipes may stand beside them: conf/experiment is where users keep their own."""
    assert {*PUBLISHED, *CONTROLS, "tiny"} <= set(names(CONF_DIR / "experiment"))


def test_the_controls_differ_from_the_published_runs_in_one_thing():
    base = leaves(load_config())
    smooth_8, no_fovea = (leaves(load_config([f"experiment={name}"])) for name in CONTROLS)
    assert smooth_8 == base
    assert {key for key in base if no_fovea[key] != base[key]} == {"model.name", "model.fovea"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_experiment_has_exactly_the_published_flags(name):
    config, base = load_config([f"experiment={name}"]), leaves(load_config())
    assert axes(config) == PUBLISHED[name]
    changed = {key.partition(".")[0] for key, value in leaves(config).items() if value != base[key]}
    assert changed <= {*AXES, "fovea", "schedule"}
    (flags,) = re.findall(r"^# Published: (.*)$", (CONF_DIR / "experiment" / f"{name}.yaml").read_text(), re.MULTILINE)
    assert flags_of(config, name) == set(re.findall(r"--\w+(?: [^\s-]\S*)?", flags))


def flags_of(config: Config, output_dir: str) -> set[str]:
    """The configuration as flags of the published command line; smooth 8 was its default and is omitted there."""
    schedule, mixture = config.schedule, config.mixture["name"]
    flags = {f"--batch_size {schedule.batch_size}", f"--lr_drop {schedule.lr_drop}", f"--epochs {schedule.epochs}"}
    flags |= {f"--num_queries {config.model.num_queries}", f"--dynamic_scale {config.dynamic_scale['name']}"}
    flags |= {f"--{mixture}_mixture"} if mixture != "none" else set()
    flags |= {f"--smooth {config.fovea.smooth:g}"} if config.fovea.smooth != 8 else set()
    return flags | {f"--output_dir {output_dir}"}


def test_the_tiny_experiment_needs_nothing_from_outside():
    config = load_config(["experiment=tiny"])
    assert (config.study, config.data.name, config.data.root, config.device) == ("tiny", "shapes", None, "cpu")
    assert config.model.backbone_weights == "none"


@pytest.mark.parametrize("name", names(SWEEPS_DIR))
def test_a_sweep_composes_at_every_point_and_its_header_says_the_same_grid(name):
    grid = OmegaConf.select(OmegaConf.load(SWEEPS_DIR / f"{name}.yaml"), "hydra.sweeper.params")
    choices = [[f"{key}={value.strip(chr(39))}" for value in str(grid[key]).split(",")] for key in grid]
    configs = [load_config([f"sweeps={name}", *point]) for point in itertools.product(*choices)]
    assert {config.study for config in configs} == {name}
    assert len({str(leaves(config)) for config in configs}) == len(configs) > 1, "every point is another run"
    command = " ".join(f"{key}={str(grid[key]).replace(chr(39), '')}" for key in grid)
    header = (SWEEPS_DIR / f"{name}.yaml").read_text()
    if len(command) < 80:
        assert f"(the same as: python run.py -m {command})" in header
    assert f"# Command:  python run.py -m sweeps={name}" in header


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_yaml_opens_with_a_comment(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert re.match(r"# \S", lines[0])


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "base"),
        (["data.root=/data/coco", "study=x", "runs=y", "cluster.gpus=8", "device=cpu", "sweeps=smooth"], "base"),
        (["seed=1", "dynamic_scale=type3"], "dynamic_scale=type3,seed=1"),
        (["smooth='4'"], "smooth=4"),
        (["+fovea.smooth=6.5", "schedule.lr=1e-4"], "fovea.smooth=6.5,schedule.lr=1e-4"),
        (["weights=/a b/c,d=1.pth"], "weights=_a_b_c_d=1.pth"),
    ],
)
def test_point_name(overrides, name):
    assert point_name(overrides) == name


def test_a_point_has_one_name_in_any_order():
    overrides = ["seed=1", "smooth=4", "mixture=head"]
    assert {point_name(order) for order in itertools.permutations(overrides)} == {"mixture=head,seed=1,smooth=4"}


def test_a_long_name_is_cut_and_still_tells_points_apart():
    long = [f"model.{key}={'x' * 40}" for key in ("a", "b", "c", "d", "e")]
    first, second = point_name([*long, "seed=1"]), point_name([*long, "seed=2"])
    assert first != second
    assert len(first) <= 180
    assert first == point_name([*long, "seed=1"])


def test_leaves():
    assert leaves({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": {}}) == {"a.b": 1, "a.c.d": None, "e": [1, 2]}
    keys = leaves(Config())
    assert keys["model.loss_weights.giou"] == 2.0
    assert keys["study"] == "default"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("study", True),
        ("cluster", True),
        ("cluster.gpus", True),
        ("data.root", True),
        ("evaluation.save_predictions", True),
        ("evaluation.backend", True),
        ("evaluation.keep_matches", True),
        ("data", False),
        ("data.name", False),
        ("evaluation.batch_size", False),
        ("seed", False),
        ("precision", False),
        ("weights", False),
        ("study_of_something", False),
    ],
)
def test_is_infrastructure(key, expected):
    assert is_infrastructure(key) is expected
