"""The command line as a user meets it: what it prints, its exit codes."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from petseg import __version__
from petseg.cli import export, main
from petseg.cli.data import _print_check
from petseg.cli.terminal import print_figures
from petseg.config import NETWORKS
from petseg.errors import PetsegError
from petseg.models import MODELS
from petseg.schema import DataCheck
from petseg.shipped import shipped_models
from tests.conftest import TINY
from tests.data.traps import make_trapped_pets

SETTINGS = [part for setting in TINY for part in ("--set", setting)]
COMMANDS = {  # every command with its flags and arguments
    "": "--debug --version",
    "predict": "--background --crop --flip --foreground --format --json --matting --model --no-zoom --only --out --raw "
    "--ray --resume --run --scales --threads --windows --zoom PHOTOS",
    "annotate": "--flip --format --model --out --polygons --resume --run --threads PHOTOS",
    "serve": "--allowed-host --host --no-open --open --port --run --set",
    "export": "--data --format --fp16 --int8 --model --no-fp16 --out --run",
    "bench": "--data --model --out --runtime --size --threads --turns",
    "data": "",
    "data get": "--data",
    "data check": "--data --json --set FOLDER",
    "data prepare": "--data --set --size",
    "data convert": "--format --out --polygons --set --splits DATA",
    "data merge": "--out --set --splits DATA",
    "models": "--classes --size QUERY",
    "train": "--data --device --export --init --model --out --resume --set --threads --unlabelled RECIPE",
    "evaluate": "--data --device --split --threads RUN",
    "robustness": "--data --device --out --split --threads MODEL",
    "compare": "--data --device --export --folds --models --out --quick --recipe --reference --resume --seeds --set "
    "--threads",
    "study": "--data --device --from --gpus --jobs --list --only --out --ray --threads RECIPE",
    "report": "--out SOURCE",
}


def petseg(*arguments, cwd=None, **environment):
    """Runs a command in this process, where torch is loaded already: a second, not ten of them."""
    out, err, code = StringIO(), StringIO(), 0
    words = ["petseg", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ, child_environment(**environment), clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
        chdir(cwd or Path.cwd()),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        except (PetsegError, OSError):
            traceback.print_exc()
            code = 1
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def succeeds(*arguments, **how):
    result = petseg(*arguments, **how)
    assert result.returncode == 0, result.stderr
    return result


def petseg_process(*arguments, **environment):
    command = [sys.executable, "-m", "petseg", *map(str, arguments)]
    environment = child_environment(**environment)
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)


def child_environment(**extra):
    kept = {name: value for name, value in os.environ.items() if name != "PETSEG_DATA"}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", **extra}


def one_line_error(result):
    lines = [line for line in result.stderr.splitlines() if line.startswith("petseg: ") and "warning" not in line]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def test_the_commands_and_their_flags_are_these():
    from typer.main import get_command

    from petseg.cli import app

    def listed(command, name):
        flags = [
            flag
            for part in command.params
            for flag in ([*part.opts, *part.secondary_opts] if part.opts[0].startswith("-") else [part.name.upper()])
        ]
        shown = " ".join(sorted(flag for flag in flags if not flag.endswith("-completion")))
        below = getattr(command, "commands", {})
        return {name: shown} | {k: v for key in below for k, v in listed(below[key], f"{name} {key}".strip()).items()}

    assert listed(get_command(app), "") == COMMANDS
    for command in COMMANDS:
        result = petseg(*command.split(), "--help")
        assert (result.returncode, "Usage: " in result.stdout) == (0, True), command


def test_version_and_an_error_of_a_process():
    assert petseg_process("--version").stdout.strip() == f"petseg {__version__}"
    assert "model 'x' is unknown" in one_line_error(petseg_process("train", "--model", "x"))
    assert "Traceback" in petseg("train", "--model", "x", "--debug").stderr


EMPTY = [
    "predict @",
    "predict cat.jpg --out @",
    "predict cat.jpg --run @",
    "predict cat.jpg --background=@",
    "annotate @",
]
EMPTY += ["data check @", "train --data=@", "evaluate @", "report @", "study @", "export --run @", "@"]


@pytest.mark.parametrize("command", EMPTY)
def test_an_empty_value_is_refused_and_never_means_the_current_folder(command, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "cat.jpg")
    before = command.removesuffix("@").rstrip(" =").split()
    line = one_line_error(petseg(*(word.removesuffix("@") for word in command.split()), cwd=tmp_path))
    named = before[-1] if before else "petseg"
    assert line == f"petseg: got an empty value after {named}; give one (. is this folder), or leave it out"
    assert [path.name for path in tmp_path.iterdir()] == ["cat.jpg"]


def test_train_evaluate_and_report_from_the_command_line(pets_folder, tmp_path):
    run, recipe = tmp_path / "run", tmp_path / "own.toml"
    recipe.write_text('models = ["segnet", "unet"]')
    training = ["train", recipe, "--data", pets_folder, "--out", run, *SETTINGS]
    trained = succeeds(*training)
    assert json.loads((run / "config.json").read_text())["model"]["name"] == "segnet", "the recipe's first"
    assert trained.stdout.startswith(f"{run}: epoch 2, val loss"), "results alone"
    assert "computing on cpu" in trained.stderr
    scored = succeeds("evaluate", run, "--data", pets_folder, "--split", "test")
    assert "24 images" in scored.stdout
    assert (run / "evaluations" / "test.json").is_file()
    assert "exists; resume it (--resume)" in one_line_error(petseg(*training))
    succeeds(*training, "--resume")


def test_compare_prints_a_table_and_the_report_s_path(pets_folder, tmp_path):
    result = succeeds("compare", "--data", pets_folder, "--out", tmp_path / "out", *SETTINGS)
    assert "U-Net" in result.stdout
    assert "SegNet" in result.stdout
    report = Path(result.stdout.splitlines()[-1].removeprefix("report: "))
    assert report == (tmp_path / "out" / "report.html").resolve()
    report.unlink()
    succeeds("report", tmp_path / "out")
    assert report.is_file()


def test_a_comparison_of_other_settings_is_refused_before_any_image_is_read(pets_folder, tmp_path):
    out = tmp_path / "out"
    made = ["compare", "--out", out, *SETTINGS, "--set", "models=['unet']"]
    succeeds(*made, "--data", pets_folder)
    otherwise = [*made, "--set", "train.epochs=3", "--data", tmp_path / "no data here", "--resume"]
    for told in (out, out / "runs" / "unet"):
        line = one_line_error(petseg(*otherwise))
        assert line.startswith(f"petseg: run folder {told}: holds another config (train.epochs is 2 there, 3 now)")
        (out / "comparison.json").unlink(missing_ok=True)  # as of a comparison that was stopped


@pytest.mark.parametrize("title", ["SegNet", "U-Net, tf_efficientnet_lite0 (ImageNet)", "N" * 90])
@pytest.mark.parametrize("number", [1, 3, 12])
def test_a_table_of_any_networks_fits_into_80_columns_with_its_figures_whole(title, number, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    heads = ("mIoU", "Pixel accuracy", "95 % interval, alone", "Cross-entropy at 200 px", "Memory, inference", "MACs")
    row = ("74.4", "90.5", "−14.4 to −13.4", "0.2507", "491.5 kB", "0.76 G")
    print_figures("Quality: percent", heads, [(f"{place} {title}", row) for place in range(number)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].strip() == "Quality: percent"
    for figure in row:
        assert sum(line.count(figure) for line in lines) == number
    assert len(lines) < 40 + 4 * number + (15 * number if len(title) > 40 else 0)


MINE = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Shape:
    width: int = 4

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        print("a network talks")
        width = Shape().width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, num_classes, 1)
        )

    def forward(self, image):
        return self.layers(image)

class Closed(Net):  # what it does depends on values, which a graph cannot hold
    def forward(self, image):
        known = image.device.type != "meta"
        return self.layers(image * 2 if known and image.sum().item() > 0 else image)
"""


@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_a_network_in_a_file_of_ones_own_is_compared_and_exported(pets_folder, tmp_path):
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    settings = [part for setting in TINY if not setting.startswith("model.") for part in ("--set", setting)]
    small = ["--quick", "--data", pets_folder, *settings, "--set", "train.epochs=1"]
    result = succeeds("compare", "--models", "mine.py:Net,tutorial", "--out", "out", "--export", *small, cwd=tmp_path)
    assert "Net" in result.stdout
    assert ("talks" in result.stdout, "a network talks" in result.stderr) == (False, True)
    assert {path.name for path in (tmp_path / "out" / "runs").iterdir()} == {"mine.py_Net", "tutorial"}
    cat = Path(__file__).parents[2] / "petseg" / "serve" / "page" / "cat.jpg"
    model = tmp_path / "out" / "runs" / "mine.py_Net" / "model.onnx"
    succeeds("predict", cat, "--model", model, "--out", tmp_path / "masks")
    assert (tmp_path / "masks" / "cat.mask.png").is_file()
    for command in ("compare", "train"):
        named = ["--quick", "--models"] if command == "compare" else ["quick", "--model"]
        words = [*named, "mine.py:Closed", "--out", "no", "--export", *small[1:]]
        result = petseg(command, *words, cwd=tmp_path)
        told = r"petseg: model 'mine\.py:Closed': cannot be exported \(\w+: .*\); train it without export \(--export\)"
        assert result.returncode == 2
        assert re.fullmatch(told, result.stderr.splitlines()[-1])
        assert "def forward" not in result.stderr
        assert not list(tmp_path.glob("no/**/*.safetensors"))


def test_ctrl_c_keeps_whole_epochs_and_says_how_to_go_on(pets_folder, tmp_path):
    words = ["train", "--data", str(pets_folder), "--out", str(tmp_path / "run"), *SETTINGS, "--set", "epochs=200"]
    command = [sys.executable, "-m", "petseg", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=child_environment())
    for line in process.stderr:  # the bar's own lines say when training is under way
        if "val loss" in line:
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command with --resume" in rest
    assert (tmp_path / "run" / "resume.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--model", "unett"], "model 'unett' is unknown; choose one of: unet"),
        (["train", "no-such"], "recipe 'no-such' is unknown; choose one of"),
        (["train", "missing.toml"], "recipe missing.toml: cannot be read"),
        (
            ["train", "--set", "seeds=3"],
            "--set seeds=3: is for `petseg compare`; a run has one model (--model) and one",
        ),
        (["train", "--set", "epoch=3"], "field 'epoch' is unknown; choose one of: train.epochs"),
        (["data", "prepare", "--data", "x", "--size", "15"], "--size: size is 15; input should be greater than"),
        (["train", "--model", "tutorial", "--set", "model.skips=false"], "model.skips was given for 'tutorial'"),
        (["train", "--set", "task=cats"], "data.oxford_pets.task 'cats' is unknown; choose one of: species"),
        (["train", "--set", "protocol=offical"], "protocol 'offical' is unknown; choose one of: official, seed"),
        (["train", "--device", "tpu"], "device 'tpu'"),
        (["train"], "no dataset"),
        (["compare", "--quick", "--recipe", "base"], "choose one: --quick is the recipe"),
        (["compare", "--set", 'models=["unet", "unet"]'], "a comparison names each model once"),
        (["compare", "--reference", "unett"], "reference 'unett' is unknown; choose one of: unet, segnet"),
        (["train", "--data", "nowhere"], "data folder nowhere: not a folder"),
        (["data", "check", "--data", "."], "data folder .: no labelled images that petseg knows; wanted images/ and"),
        (["evaluate", "nowhere"], "no such file; is this the folder of a finished run"),
        (["report", "nowhere"], "nowhere is no file; a report is made from a comparison.json"),
        (["bench", "--runtime", "onnx"], "--runtime 'onnx' is unknown; choose one of: onnxruntime"),
        (["bench", "--model", "unett"], "model 'unett' is unknown; choose one of: unet"),
        (["bench", "--threads", "1,two"], "--threads is '1,two'; wanted whole numbers above zero"),
        (["bench", "--out", "dog.jpg"], "--out dog.jpg: the table is JSON; name a file that ends in .json"),
        (["bench", "--size", "0"], "--size is '0'; wanted whole numbers above zero"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(arguments, message, tmp_path):
    result = petseg(*arguments, cwd=tmp_path, XDG_DATA_HOME=str(tmp_path / "none"))
    assert message in one_line_error(result)
    assert not [path for path in tmp_path.iterdir() if path.name != "none"]


PATHS = [
    *("predict {}.jpg", "predict {}", "predict cat.jpg --model {}.onnx", "predict cat.jpg --run {}"),
    *("data get --data {}", "data check --data {}", "train --data {}", "train {}.toml", "train --data PETS --out {}"),
    *("evaluate {}", "report {}", "report {}.json", "compare --data {}", "compare --data PETS --out {}"),
    *("study --data {}", "study {}.toml", "export --run {} --out x.onnx", "bench --data {}"),
]


@pytest.mark.parametrize("command", PATHS)
@pytest.mark.parametrize("place", ["locked", "x" * 300], ids=["no permission", "a long name"])
def test_a_path_that_the_system_refuses_is_one_line(command, place, pets_folder, tmp_path, monkeypatch):
    """Who is root may read everything, so the folder without permission is played."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("cat.jpg")

    def refusing(call):
        def refuse(path, *arguments, **options):
            if "locked" in str(path):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path, *arguments, **options)

        return refuse

    for module, names in ((os, ("stat", "mkdir", "scandir", "listdir", "open")), (io, ("open",))):
        for name in names:
            monkeypatch.setattr(module, name, refusing(getattr(module, name)))
    line = one_line_error(petseg(*command.replace("PETS", str(pets_folder)).format(place).split()))
    assert place in line
    assert ("Permission denied" if place == "locked" else "File name too long") in line


def test_plain_compare_never_falls_back_to_synthetic_pets(tmp_path):
    environment = {"XDG_DATA_HOME": str(tmp_path / "none"), "https_proxy": "http://127.0.0.1:9"}
    line = one_line_error(petseg("compare", "--set", "epochs=1", cwd=tmp_path, **environment))
    assert "could not be downloaded" in line
    assert "set PETSEG_DATA" in line
    assert not (tmp_path / "runs").exists()


def test_data_check_prints_each_trap_in_lines_or_json_and_what_spoils_training_stops_it(tmp_path, capsys):
    folder = make_trapped_pets(tmp_path / "pets", size=48)
    result = petseg("data", "check", folder, COLUMNS="80")
    assert result.returncode == 1, result.stderr
    for trap in ("hidden file among the trimaps", "not a .jpg among the images", "GIF named .jpg", "cannot be decoded"):
        assert trap in result.stdout
    assert "\nwarning: image smaller than 128 px: 1" in result.stdout
    assert re.search(r"\n    beagle_90\d: image cannot be decoded \(.*", result.stdout), "one reason beneath the names"
    assert re.search(r"\n\d+ of \d+ images have a mask, \d+ usable, ", result.stdout)
    assert result.stdout.endswith("5 errors above would spoil training: mend what they name, and check again.\n")
    assert max(map(len, result.stdout.splitlines())) <= 80
    listed = petseg("data", "check", "--data", folder, "--json", "--set", "data.size=32")
    found = DataCheck.model_validate_json(listed.stdout)
    assert (listed.returncode, found.spoiled, found.size) == (1, 5, 32)
    assert not any("smaller" in row.found for row in found.findings)
    assert "Ignored" not in result.stdout
    _print_check(found.model_copy(update={"ignored": 0.2345}))
    assert "\nIgnored: 23.45 % of all pixels\n" in capsys.readouterr().out
    for command in (["train", "--out", tmp_path / "run"], ["compare", "--out", tmp_path / "run"]):
        stopped = petseg(*command, "--data", folder, *SETTINGS)
        assert stopped.returncode == 2
        pattern = r"petseg: .*: 6 of \d+ images cannot be used \(first: .*`petseg data check` lists them"
        assert re.match(pattern, stopped.stderr.splitlines()[-1])
        assert not (tmp_path / "run").exists()
    assert "two folders were given" in one_line_error(petseg("data", "check", folder, "--data", folder))


def test_models_lists_networks_shipped_files_and_encoders_by_part_of_a_name(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = succeeds("models", "segnet", COLUMNS="80")
    names = re.findall(r"^│ (\w+) ", result.stdout, re.M)
    assert names == ["segnet_base", "segnet_small", "segnet", "segnet_paper", "segnet_basic"]
    assert "1.8 M" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert {name: builder.title for name, builder in MODELS.items()} == NETWORKS
    assert "no model has 'nonesuch' in its name" in one_line_error(petseg("models", "nonesuch"))
    if not (find_spec("timm") and find_spec("segmentation_models_pytorch")):
        assert "pip install 'petseg[models]'" in result.stdout
        return
    result = succeeds("models", "lite0")
    assert re.search(r"timm:tf_efficientnet_lite0 +│ (installed|hub)", result.stdout)
    assert "smp:Unet/mit_b0" in succeeds("models", "mit_b0").stdout
    assert "FPN, test_resnet" in succeeds("models", "smp:FPN/tu-test_resnet", "--size", 64).stdout


def test_models_are_listed_without_torch(monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    result = succeeds("models")
    assert f"networks: {', '.join(NETWORKS)}; pip install 'petseg[train]' trains them" in result.stdout
    assert all(name in result.stdout for name in shipped_models())
    assert "networks:" not in succeeds("models", "unet_lite2").stdout
