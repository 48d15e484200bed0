"""`petseg predict` and `petseg export` as a user meets them."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.data.synthetic import draw_pet
from petseg.errors import disk_errors
from petseg.predict.outputs import ENDINGS
from tests.cli.test_commands import child_environment, one_line_error, petseg, succeeds
from tests.data.test_images import huge_png
from tests.predict.test_outputs import below, pet

both = pytest.mark.usefixtures("runtime")


def piped(content, *arguments):
    command = [sys.executable, "-m", "petseg", "predict", "-", *arguments]
    return subprocess.run(command, input=content, capture_output=True, env=child_environment(), check=False, timeout=60)


@both
def test_one_photo_gets_three_files_beside_it(tmp_path):
    pet(tmp_path / "cat.jpg", "Bengal")
    result = succeeds("predict", "cat.jpg", cwd=tmp_path)
    assert re.match(r"cat.jpg: (cat|dog), \d+ % sure that it is no (cat|dog), ", result.stdout)
    assert "% of the photo; cat.mask.png; cat.cutout.png; cat.overlay.png" in result.stdout
    assert result.stderr == ""
    assert below(tmp_path) == {"cat.jpg", "cat.mask.png", "cat.cutout.png", "cat.overlay.png"}


def test_a_folder_with_a_bad_photo_is_done_and_exits_1_then_resumes(tmp_path):
    for name in ("a.jpg", "deep/b.png", "c.jpg"):
        pet(tmp_path / "photos" / name)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"words")
    arguments = ("predict", "photos", "--out", "masks", "--only", "cutout", "--model", "segnet")
    result = petseg(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("petseg: ")]
    assert line.startswith("petseg: photos/bad.jpg: cannot be decoded (not an image that can be read; wanted JPEG")
    assert result.stdout.splitlines()[-1].startswith("4 photos: ")
    assert "1 failed" in result.stdout
    assert below(tmp_path / "masks") == {"a.cutout.png", "deep/b.cutout.png", "c.cutout.png"}
    kept = (tmp_path / "masks" / "a.cutout.png").stat().st_mtime_ns
    (tmp_path / "masks" / "c.cutout.png").unlink()
    again = petseg(*arguments, "--resume", cwd=tmp_path)
    assert again.returncode == 1
    assert "2 of 4 photos are done already" in again.stderr
    assert (tmp_path / "masks" / "c.cutout.png").is_file()
    assert (tmp_path / "masks" / "a.cutout.png").stat().st_mtime_ns == kept
    (tmp_path / "photos" / "bad.jpg").unlink()
    succeeds(*arguments, "--resume", cwd=tmp_path)


def test_resume_skips_no_photo_for_another_one_s_mask(tmp_path):
    for number, folder in enumerate("abc"):
        pet(tmp_path / folder / "cat.jpg", number=number)
    arguments = ("--out", "out", "--only", "mask", "--model", "unet_small")
    succeeds("predict", "a", "b", "c", *arguments, cwd=tmp_path)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in below(tmp_path / "out")}
    assert {*before} == {"cat.jpg.mask.png", "cat.jpg-2.mask.png", "cat.jpg-3.mask.png"}
    (tmp_path / "a" / "cat.jpg").unlink()
    for more in ((), ("--resume",)):
        line = one_line_error(petseg("predict", "b", "c", *arguments, *more, cwd=tmp_path))
        assert "out/cat.jpg.mask.png is of another photo than b/cat.jpg" in line
        assert {name: (tmp_path / "out" / name).read_bytes() for name in below(tmp_path / "out")} == before


@both
@pytest.mark.parametrize("more", [("--only", "mask"), ("--json",)])
@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_call_says_how_many_photos_are_done_and_how_to_go_on(tmp_path, monkeypatch, more, signalled):
    from petseg.predict import outputs

    def interrupted(*arguments, **options):
        for number, outcome in enumerate(whole(*arguments, **options)):
            if number == 3:
                signal.raise_signal(signalled)
            yield outcome

    whole = outputs.predict_jobs
    monkeypatch.setattr(outputs, "predict_jobs", interrupted)
    for number in range(1, 6):
        pet(tmp_path / f"{number}.jpg", number=number)
    (tmp_path / "2.jpg").write_bytes(b"words")
    handler = signal.getsignal(signal.SIGTERM)  # Ray leaves one of its own, where its tests ran before
    stopped = petseg("predict", ".", *more, cwd=tmp_path)
    assert stopped.returncode == 128 + signalled
    failed, line = (line for line in stopped.stderr.splitlines() if line.startswith("petseg: "))
    assert failed.startswith("petseg: 2.jpg: cannot be decoded")
    again = "; run it again with --resume" if "mask" in more else ""
    made = len([*tmp_path.glob("*.mask.png")]) if "mask" in more else 2  # those under way were finished
    assert made >= 2
    assert line == f"petseg: interrupted: {made} of 5 photos are done{again}"
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_sub_folder_that_cannot_be_read_is_said_and_exits_1(tmp_path, monkeypatch):
    def refusing(path):
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refusing)
    pet(tmp_path / "photos" / "a.jpg")
    (tmp_path / "photos" / "locked").mkdir()
    result = petseg("predict", "photos", "--only", "mask", cwd=tmp_path)
    assert result.returncode == 1
    assert "petseg: photos/locked: folder that cannot be read (Permission denied)" in result.stderr.splitlines()
    assert "1 left out: 1 folder that cannot be read (Permission denied)" in result.stdout
    assert (tmp_path / "photos" / "a.mask.png").is_file()


def test_photos_that_fail_are_said_when_they_do(tmp_path, monkeypatch):
    from petseg.predict import outputs

    whole, said = outputs.predict_jobs, []

    def watched(*arguments, **options):
        for outcome in whole(*arguments, **options):
            said.append(sys.stderr.getvalue().count("petseg: "))
            yield outcome

    monkeypatch.setattr(outputs, "predict_jobs", watched)
    for number in (2, 3):
        pet(tmp_path / f"{number}.jpg", number=number)
    (tmp_path / "1.jpg").write_bytes(b"words")
    result = petseg("predict", ".", "--json", cwd=tmp_path)
    assert (result.returncode, said) == (1, [0, 1, 1])
    assert "1 failed" in result.stderr


def test_a_disk_that_takes_no_more_ends_the_folder(tmp_path, monkeypatch):
    from petseg import storage

    whole, left = storage.write_together, iter(range(4))

    def filling(files):
        if next(left, None) is None:
            with disk_errors(next(iter(files))):
                raise OSError(reason, os.strerror(reason))
        return whole(files)

    monkeypatch.setattr(storage, "write_together", filling)
    for number in range(30):
        pet(tmp_path / f"{number}.jpg", number=number)
    for reason in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
        line = one_line_error(petseg("predict", ".", "--only", "mask", "--resume", "--threads", "1", cwd=tmp_path))
        assert f"cannot be written ({os.strerror(reason)})" in line
        assert line.endswith("; 4 of 30 photos are done; run it again with --resume")
        for mask in tmp_path.glob("*.mask.png"):
            mask.unlink()
        left = iter(range(4))


def test_json_prints_a_line_a_photo_and_writes_nothing(tmp_path):
    for number in (1, 2):
        pet(tmp_path / f"{number}.jpg", number=number)
    result = succeeds("predict", ".", "--json", cwd=tmp_path)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["photo"] for row in rows] == ["1.jpg", "2.jpg"]
    figures = {"foreground", "foreground_share", "confidence", "foreground_class", "boxes", "notes", "width"}
    assert figures | {"files"} <= set(rows[0])
    assert below(tmp_path) == {"1.jpg", "2.jpg"}
    (tmp_path / "note.pdf").touch()
    *_, left_out = petseg("predict", ".", "--json", cwd=tmp_path).stdout.splitlines()
    assert json.loads(left_out) == {"left_out": "note.pdf", "reason": "named .pdf"}
    named = petseg("predict", "1.jpg", "--json", "--only", "mask", cwd=tmp_path)
    assert json.loads(named.stdout)["files"] == {"mask": "1.mask.png"}
    assert (tmp_path / "1.mask.png").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    ("call", "code", "line"),
    [
        ("predict a --json | head -n 1", 141, None),
        (
            "predict a --json >/dev/full",
            2,
            "petseg: stdout: cannot be used (No space left on device); name another path",
        ),
        ("predict - --only mask <a/1.png >/dev/full", 2, "petseg: stdout: cannot be used (No space left on device)"),
        ("predict - --json <&-", 2, "petseg: stdin is closed; pipe a photo into it, or name its file"),
    ],
)
def test_streams_that_are_closed_or_full_are_named_and_nobody_reading_on_is_quiet(tmp_path, call, code, line):
    for number in range(20):
        pet(tmp_path / "a" / f"{number}.png", number=number)
    command = ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m petseg {call}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=child_environment(), check=False, timeout=60
    )
    said = [each for each in done.stderr.splitlines() if "photos at once" not in each and "predict" not in each]
    assert done.returncode == code, done.stderr
    assert len(said) == (0 if line is None else 1), done.stderr
    assert line is None or said[0].startswith(line)


@both
def test_a_photo_on_stdin_comes_back_on_stdout(tmp_path):
    content = pet(tmp_path / "a.png").read_bytes()
    result = piped(content, "--only", "mask")
    assert result.returncode == 0, result.stderr
    petseg("predict", tmp_path / "a.png", "--only", "mask")
    assert result.stdout == (tmp_path / "a.mask.png").read_bytes()
    assert json.loads(piped(content, "--json").stdout)["photo"] == "-"
    bad = piped(b"words", "--only", "mask")
    assert (bad.returncode, bad.stdout) == (2, b"")
    assert bad.stderr.startswith(b"petseg: stdin: cannot be decoded (not an image that can be read; wanted JPEG")


@both
@pytest.mark.parametrize("arguments", [["-", "--only", "mask"], ["a.png", "--json"]])
def test_stdout_carries_results_only_whatever_a_library_prints(tmp_path, arguments):
    content = pet(tmp_path / "a.png").read_bytes()
    noisy = (
        "import os, sys; from petseg.predict.segmentation import Segmentation; from petseg.cli import main\n"
        "boxes = Segmentation.boxes.func\n"
        "def loud(self): print('from Python'); os.write(1, b'from C\\n'); return boxes(self)\n"
        "Segmentation.boxes = property(loud)\n"
        f"sys.argv = ['petseg', 'predict', *{arguments}]; main()"
    )
    words = [sys.executable, "-c", noisy]
    done = subprocess.run(words, input=content, capture_output=True, cwd=tmp_path, env=child_environment(), check=True)
    assert b"from Python" in done.stderr
    assert b"from C" in done.stderr
    assert b"from" not in done.stdout
    assert done.stdout.startswith(b"\x89PNG") if "-" in arguments else json.loads(done.stdout)["photo"] == "a.png"


def test_an_animation_says_that_its_first_frame_is_used(tmp_path):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "white")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    result = petseg("predict", "a.gif", "--only", "mask", cwd=tmp_path)
    assert result.stdout == "a.gif: no cat or dog; 3 frames, the first one is used; a.mask.png\n"
    with Image.open(tmp_path / "a.mask.png") as mask:
        assert not np.asarray(mask).any()
    whole = petseg("predict", ".", "--only", "mask", cwd=tmp_path)
    assert whole.stdout.splitlines() == [
        "a.gif: no cat or dog; 3 frames, the first one is used; a.mask.png",
        "1 left out: 1 written by petseg",
        "1 photo: 0 with foreground, 1 without, 0 failed; mask beside each photo",
    ]
    notes = piped((tmp_path / "a.gif").read_bytes(), "--only", "mask").stderr.decode().splitlines()
    assert notes == ["petseg: stdin: no cat or dog", "petseg: stdin: 3 frames, the first one is used"]


@both
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_photo_of_fifty_megapixels_gets_every_file(tmp_path):
    size = (8660, 5774)
    drawn = Image.fromarray(draw_pet("beagle", 1, size=200)[0])
    drawn.resize(size, Image.Resampling.NEAREST).save(tmp_path / "large.jpg")
    words = ["large.jpg", "--model", "unet_small", *(word for kind in ENDINGS for word in ("--only", kind))]
    code = (
        "import atexit, pathlib, sys; from petseg.cli import main\n"
        "atexit.register(lambda: print(pathlib.Path('/proc/self/status').read_text()))\n"  # rusage has the parent's
        f"sys.argv = ['petseg', 'predict', *{words}]; main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True, check=True)
    assert below(tmp_path) == {"large.jpg", *(f"large{ending}" for ending in ENDINGS.values())}
    for kind in ("mask", "cutout", "trimap"):
        with Image.open(tmp_path / f"large{ENDINGS[kind]}") as image:
            assert image.size == size
    assert int(re.search(r"VmHWM:\s+(\d+)", done.stdout)[1]) * 1024 < 2e9


def test_matting_changes_the_cut_out_alone(tmp_path):
    pet(tmp_path / "a.png")
    for folder, more in (("plain", ()), ("matted", ("--matting",))):
        succeeds("predict", "a.png", "--out", folder, *more, cwd=tmp_path)
    for kind, same in (("mask", True), ("overlay", True), ("cutout", False)):
        files = [tmp_path / folder / f"a{ENDINGS[kind]}" for folder in ("plain", "matted")]
        assert (files[0].read_bytes() == files[1].read_bytes()) == same, kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["words.jpg"], "words.jpg: cannot be decoded (not an image that can be read; wanted JPEG"),
        (["empty.jpg"], "empty.jpg: is empty (zero bytes)"),
        (["cut.jpg"], "cut.jpg: cannot be decoded"),
        (["bomb.png"], "bomb.png: cannot be decoded (Image size (10000000000 pixels) exceeds limit"),
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["none"], "none: no images in this folder"),
        (["good.png", "--out", "words.jpg"], "words.jpg: cannot be written (Not a directory)"),
        (["words.jpg", "--out", "new"], "words.jpg: cannot be decoded"),
        (["none/..", "--out", "/proc"], "/proc: cannot be written"),
        (["good.png", "--model", "unett"], "model 'unett' is unknown; choose one of: unet"),
        (
            ["good.png", "--model", "pets.xml"],
            "model pets.xml: wanted an ONNX file, which ends in .onnx, or a shipped model; `petseg models` lists these",
        ),
        (["good.png", "--model", "nowhere.onnx"], "model nowhere.onnx: cannot be read"),
        (
            ["good.png", "--foreground", "cats"],
            "foreground 'cats' is unknown; choose one of: cat, background, border, dog",
        ),
        (["good.png", "--scales", "1;2"], "--scales '1;2' is no list of numbers; give 1,1.25"),
        (["good.png", "--scales", "1,9"], "scales are 1.0, 9.0; wanted at least one of .25 to 4"),
        (["good.png", "--only", "masks"], "--only 'masks' is unknown; choose one of: mask"),
        (["good.png", "--run", "none"], "is this the folder of a finished run"),
        (["good.png", "--run", "none", "--model", "unet"], "choose one: a run holds its own model"),
        (["good.png", "--only", "mask", "--matting"], "--matting is of cut-outs, and none is written"),
        (["good.png", "--only", "mask", "--background", "red"], "--background is of cut-outs, and none is written"),
        (
            ["good.png", "--background", "rde"],
            "background 'rde' is neither a file nor a colour; give an image file, or a colour",
        ),
        (["good.png", "--format", "jpg"], "--format jpg holds no transparency, and a cut-out has it; add --background"),
        (["good.png", "--format", "gif"], "--format 'gif' is unknown; choose one of"),
        (["good.png", "--json", "--resume"], "--resume was given with --json alone"),
        (["good.png", "--only", "mask", "--format", "webp"], "--format webp is of cut-outs and overlays"),
        (["-"], "give a single --only, or --json, and no --out"),
        (["-", "good.png"], "-: no such file or folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments, message, tmp_path):
    for name, content in (("words.jpg", b"words"), ("empty.jpg", b""), ("bomb.png", huge_png(100_000))):
        (tmp_path / name).write_bytes(content)
    for name in ("cut.jpg", "good.png"):
        Image.new("RGB", (300, 200), "red").save(tmp_path / name)
    os.truncate(tmp_path / "cut.jpg", 700)
    (tmp_path / "none").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert message in one_line_error(petseg("predict", *arguments, cwd=tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("module", "arguments", "extra"), [("onnx", ["--run", "y"], "export"), ("scipy", ["--matting"], "matting")]
)
def test_what_the_light_install_lacks_is_told_with_its_extra(module, arguments, extra, tmp_path):
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv = ['petseg', 'predict', 'x.png', *{arguments}]\n"
    Image.new("RGB", (3, 3)).save(tmp_path / "x.png")
    command = [sys.executable, "-c", code + "from petseg.cli import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=child_environment())
    needed = f"petseg: this command needs {module}; pip install 'petseg[{extra}]'\n"
    assert (done.returncode, done.stderr) == (2, needed)


def test_a_trained_run_predicts_and_exports(pets_folder, tmp_path):
    from tests.cli.test_commands import SETTINGS

    run = tmp_path / "run"
    succeeds("train", "--data", pets_folder, "--out", run, *SETTINGS, "--set", "model.depth=1")
    photo = pet(tmp_path / "a.jpg")
    succeeds("predict", photo, "--run", run, "--only", "mask")
    exported = succeeds("export", "--run", run, "--out", tmp_path / "x.onnx")
    assert "agrees with torch on" in exported.stdout
    first = (tmp_path / "a.mask.png").read_bytes()
    succeeds("predict", photo, "--model", tmp_path / "x.onnx", "--only", "mask")
    assert (tmp_path / "a.mask.png").read_bytes() == first
