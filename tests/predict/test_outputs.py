"""Files of predictions: who writes what, one bad photo among good ones, resume, nothing half-written."""

import os
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from petseg.data.synthetic import draw_pet
from petseg.errors import PetsegError
from petseg.predict import outputs
from petseg.predict.outputs import ENDINGS, USUAL, Look, check_outputs, encoded, is_output, predict_job, predict_jobs
from petseg.predict.segmentation import Segmentation
from petseg.predict.segmenter import Segmenter
from tests.conftest import refused


@pytest.fixture(scope="module")
def segmenter(runtime):
    return Segmenter("unet_small", threads=1)


def pet(path, breed="beagle", number=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_pet(breed, number, size=64)[0]).save(path)
    return path


def plan(*arguments):
    return outputs.plan(*arguments)[0]


def below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_kinds_and_files_beside_the_photo_or_in_a_mirror_of_its_folder(tmp_path):
    assert outputs.chosen_kinds([]) == USUAL
    assert outputs.chosen_kinds(["mask", "json", "mask"]) == ("mask", "json")
    first, second = pet(tmp_path / "in" / "a.jpg"), pet(tmp_path / "in" / "deep" / "er" / "b.png")
    beside = [job.files["mask"] for job in plan([tmp_path / "in"], ["mask"], None)]
    assert beside == [first.with_name("a.mask.png"), second.with_name("b.mask.png")]
    mirrored = [job.files["mask"] for job in plan([tmp_path / "in"], ["mask"], tmp_path / "out")]
    assert mirrored == [tmp_path / "out" / "a.mask.png", tmp_path / "out" / "deep" / "er" / "b.mask.png"]
    (alone,) = plan([second], ["mask"], tmp_path / "out")
    assert alone.files["mask"] == tmp_path / "out" / "b.mask.png"


@pytest.mark.parametrize(
    ("names", "out", "wanted"),
    [
        (("IMG_1.JPG", "IMG_1.jpg", "b.jpg"), None, ["IMG_1.JPG", "IMG_1.jpg-2", "b"]),
        (("IMG_1.JPG", "IMG_1.jpg", "IMG_1.jpg-2.png"), None, ["IMG_1.JPG", "IMG_1.jpg-2", "IMG_1.jpg-2-2"]),
        (("a/cat.jpg", "b/cat.jpg", "b/dog.jpg"), "out", ["cat.jpg", "cat.jpg-2", "dog"]),
        (("a/cat.jpg", "b/cat.jpg"), None, ["cat", "cat"]),
        (("cat.jpg", "cat.png", "dog.jpg"), None, ["cat.jpg", "cat.png", "dog"]),
    ],
)
def test_two_photos_of_one_name_write_files_of_their_own(segmenter, tmp_path, names, out, wanted):
    photos = [pet(tmp_path / name) for name in names]
    if len({*tmp_path.rglob("*.*")}) < len(names):
        pytest.skip("this file system tells no cases apart")
    jobs = plan([*photos[::-1], photos[0]], ["mask"], out and tmp_path / out)
    written = [job.files["mask"].name.removesuffix(".mask.png") for job in jobs]
    assert written == wanted
    for job, name in zip(jobs, written, strict=True):
        notes = predict_job(segmenter, job).result().notes
        assert [note.partition(",")[0] for note in notes] == [f"written as {name}"] * ("-2" in name)


def test_a_folder_is_predicted_whole_but_for_its_bad_photo(segmenter, tmp_path):
    for number in range(1, 6):
        pet(tmp_path / "in" / f"{number}.jpg", number=number)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"words")
    truncated = (tmp_path / "in" / "1.jpg").read_bytes()[:400]
    (tmp_path / "in" / "cut.jpg").write_bytes(truncated)
    jobs = plan([tmp_path / "in"], USUAL, tmp_path / "out")
    outcomes = list(predict_jobs(segmenter, jobs, workers=3))
    assert [outcome.job for outcome in outcomes] == jobs
    failed = {outcome.job.photo.name: str(outcome.error) for outcome in outcomes if outcome.error}
    assert set(failed) == {"bad.jpg", "cut.jpg"}
    assert "not an image that can be read" in failed["bad.jpg"]
    wanted = {f"{number}{ENDINGS[kind]}" for number in range(1, 6) for kind in USUAL}
    assert below(tmp_path / "out") == wanted
    for outcome in outcomes:
        if outcome.summary is not None:
            row = outcome.to_dict()
            assert (row["photo"], row["files"]["mask"]) == (str(outcome.job.photo), str(outcome.job.files["mask"]))


def content(path):
    """Returns what a file says: zlib-ng packs the same pixels into other bytes now and then, by a byte in 7,000."""
    if path.suffix != ".png":
        return path.read_bytes()
    with Image.open(path) as image:
        return image.mode, image.size, image.tobytes(), image.info


def test_what_is_written_reads_back_and_does_not_depend_on_workers(segmenter, tmp_path):
    for number in range(1, 5):
        pet(tmp_path / "in" / f"{number}.png", number=number)
    for workers in (1, 4):
        jobs = plan([tmp_path / "in"], list(ENDINGS), tmp_path / str(workers))
        assert all(outcome.error is None for outcome in predict_jobs(segmenter, jobs, workers))
    for name in below(tmp_path / "1"):
        assert content(tmp_path / "1" / name) == content(tmp_path / "4" / name), name
    assert len(below(tmp_path / "4")) == 4 * len(ENDINGS)
    result = segmenter(jobs[0].photo)
    maps = {"mask": result.mask, "classes": result.class_ids, "trimap": result.trimap}
    for kind, wanted in {**maps, "cutout": result.cutout(), "overlay": result.overlay()}.items():
        with Image.open(jobs[0].files[kind]) as image:
            assert (np.asarray(image) == np.asarray(wanted)).all(), kind
    assert jobs[0].files["json"].read_bytes() == encoded(result, "json", key=result.photo.key)


def test_done_means_every_file_is_there_and_none_is_taken_for_a_photo(segmenter, tmp_path):
    pet(tmp_path / "a.jpg")
    (job,) = plan([tmp_path], list(ENDINGS), None)
    assert not job.done()
    assert predict_job(segmenter, job).error is None
    assert job.done()
    assert plan([tmp_path], list(ENDINGS), None) == [job]
    job.files["cutout"].unlink()
    assert not job.done()


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_photo_takes_no_other_photo_s_files_for_its_own(segmenter, tmp_path, kind):
    look = Look(background="white", format=kind)
    photos = [pet(tmp_path / day / "cat.jpg", number=number) for number, day in enumerate(("mon", "tue"))]
    (first,), _ = outputs.plan([tmp_path / "mon"], list(ENDINGS), tmp_path / "out", look)
    (other,), _ = outputs.plan([tmp_path / "tue"], list(ENDINGS), tmp_path / "out", look)
    assert first.files == other.files
    assert predict_job(segmenter, first, look=look).error is None
    assert (first.done(), other.done()) == (True, False)
    assert other.of_others() == [*other.files.values()]
    line = refused(r"is of another photo than .*cat\.jpg, or of this one before it changed", check_outputs, [other])
    assert line.endswith("; move it, or choose --out")
    check_outputs([first])
    photos[1].write_bytes(photos[0].read_bytes())  # wherever a photo lies, it is the same one
    assert other.done()
    for path, content in ((path, encoded(segmenter(photos[0]), name, look=look)) for name, path in first.files.items()):
        path.write_bytes(content)  # as an earlier version did
        assert is_output(path)
    photos[1].write_bytes(pet(tmp_path / "new.jpg", number=7).read_bytes())
    assert other.done()


def test_an_empty_file_is_not_done_and_is_replaced(segmenter, tmp_path):
    (job,) = plan([pet(tmp_path / "cat.jpg")], USUAL, None)
    assert predict_job(segmenter, job).error is None
    job.files["cutout"].write_bytes(b"")  # as a power cut may leave it
    assert not job.done()
    check_outputs([job])
    assert predict_job(segmenter, job).error is None
    assert job.done()


def test_beside_a_photo_that_was_changed_its_files_are_replaced(segmenter, tmp_path):
    (job,) = plan([pet(tmp_path / "cat.jpg")], USUAL, None)
    assert predict_job(segmenter, job).error is None
    pet(tmp_path / "cat.jpg", number=2)
    assert not job.done()
    check_outputs([job])
    assert predict_job(segmenter, job).error is None
    assert job.done()


def test_an_output_never_replaces_a_photo_or_a_file_of_somebody_else(segmenter, tmp_path):
    photo, other = pet(tmp_path / "cat.png"), pet(tmp_path / "cat.mask.png", number=2)
    with pytest.raises(PetsegError, match=r"cat\.mask\.png is one of the photos and would be replaced"):
        check_outputs(plan([photo, other], ["mask"], None))
    jobs = plan([photo], ["mask", "json"], None)
    refused(r"cat\.mask\.png is there already and petseg did not write it", check_outputs, jobs)
    other.unlink()
    (tmp_path / "cat.prediction.json").write_text("{}")
    refused(r"cat\.prediction\.json is there already", check_outputs, jobs)
    (tmp_path / "cat.prediction.json").unlink()
    for _ in range(2):  # its own files it replaces
        check_outputs(jobs)
        assert predict_job(segmenter, jobs[0]).error is None


def test_a_glob_that_is_run_again_takes_no_output_for_a_photo(segmenter, tmp_path):
    pet(tmp_path / "a.png")
    for _ in range(2):
        jobs = plan(sorted(tmp_path.glob("*.png")), USUAL, None)
        assert [job.photo.name for job in jobs] == ["a.png"]
        list(predict_jobs(segmenter, jobs))
    assert below(tmp_path) == {"a.png", *(f"a{ENDINGS[kind]}" for kind in USUAL)}
    with pytest.raises(PetsegError, match=r"a\.mask\.png: petseg wrote this file; name the photo itself"):
        plan([tmp_path / "a.mask.png"], USUAL, None)


def test_a_place_that_cannot_be_written_is_an_error(segmenter, tmp_path):
    (tmp_path / "file").write_text("in the way")
    photo = pet(tmp_path / "a.jpg")
    outputs.check_folders(plan([photo], ["mask"], tmp_path / "not" / "yet"))
    assert not (tmp_path / "not").exists()
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        (job,) = plan([photo], ["mask"], folder)
        refused(r"file.*: cannot be written .*choose another folder \(--out\)", outputs.check_folders, [job])
    assert below(tmp_path) == {"a.jpg", "file"}
    outcome = predict_job(segmenter, job)
    assert "cannot be written" in str(outcome.error)
    assert outcome.summary is None
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_photo_with_a_long_name_is_written_and_one_with_a_too_long_name_fails_alone(segmenter, tmp_path):
    for letters in (241, 246):  # with .mask.png 250 and 255 bytes: the most that a name may have
        pet(tmp_path / f"{'x' * letters}.jpg")
    pet(tmp_path / f"{'x' * 250}.jpg")
    jobs = plan([tmp_path], ["mask"], None)
    check_outputs(jobs)
    outputs.remove_unfinished(jobs)
    outcomes = list(predict_jobs(segmenter, jobs))
    (error,) = (str(outcome.error) for outcome in outcomes if outcome.error)
    advice = "give the photo or the folder a shorter name"
    assert error.endswith(f".mask.png: cannot be written (File name too long); {advice}")
    assert [job.done() for job in jobs] == [not outcome.error for outcome in outcomes]


def test_of_several_files_all_are_written_or_none(segmenter, tmp_path):
    (job,) = plan([pet(tmp_path / "a.jpg")], ["mask", "cutout"], None)
    job.files["mask"].write_bytes(b"before")
    in_the_way = job.files["cutout"].with_name(f".{job.files['cutout'].name}.tmp{os.getpid()}")
    in_the_way.mkdir()
    assert "a.cutout.png: cannot be written" in str(predict_job(segmenter, job).error)
    assert below(tmp_path) == {"a.jpg", "a.mask.png"}
    assert job.files["mask"].read_bytes() == b"before"


def test_a_photo_too_large_for_the_memory_is_an_error(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmentation, "cutout", Mock(side_effect=MemoryError))
    (job,) = plan([pet(tmp_path / "a.jpg")], USUAL, None)
    error = str(predict_job(segmenter, job).error)
    assert error.endswith("a.jpg: too large for this machine's memory; reduce it first")
    assert below(tmp_path) == {"a.jpg"}


@pytest.mark.parametrize(("kind", "size", "longest"), [("webp", (1, 20_000), "16,383"), ("jpg", (70_000, 2), "65,500")])
def test_a_photo_that_a_format_cannot_hold_fails_alone(segmenter, tmp_path, kind, size, longest):
    Image.new("RGB", size, "red").save(tmp_path / "long.png")
    look = Look(background="white", format=kind)
    jobs, _ = outputs.plan([tmp_path / "long.png", pet(tmp_path / "pet.png")], ["cutout", "overlay"], None, look)
    long, whole = predict_jobs(segmenter, jobs, look=look)
    given = f"its cutout has {size[0]:,} x {size[1]:,} pixels; {kind} holds at most {longest} a side: take --format png"
    assert str(long.error) == f"{tmp_path / 'long.png'}: {given}"
    assert whole.error is None
    assert below(tmp_path) == {"long.png", "pet.png", f"pet.cutout.{kind}", f"pet.overlay.{kind}"}


def test_a_cut_out_on_a_background_cropped_and_in_another_format(segmenter, tmp_path):
    photo, beach = pet(tmp_path / "a.png"), tmp_path / "beach.png"
    Image.new("RGB", (30, 90), "#0080ff").save(beach)
    plain = segmenter(photo).cutout()
    box = plain.getbbox()
    for name, given in (("webp", None), ("jpg", "#0080ff"), ("png", str(beach))):
        look = Look(background=given, crop=name != "jpg", format=name)
        ((job,), _) = outputs.plan([photo], ["cutout", "overlay", "mask"], tmp_path / name, look)
        assert predict_job(segmenter, job, look=look).error is None
        assert below(tmp_path / name) == {f"a.cutout.{name}", f"a.overlay.{name}", "a.mask.png"}
        assert all(is_output(path) for path in job.files.values())
        assert outputs.plan([*job.files.values(), photo], USUAL, None)[0][0].photo == photo
        with Image.open(job.files["cutout"]) as opened:
            assert (opened.format, opened.mode) == ({"jpg": "JPEG"}.get(name, name.upper()), "RGB" if given else "RGBA")
            assert opened.size == (plain.size if name == "jpg" else (box[2] - box[0], box[3] - box[1]))
            if given:
                behind = np.asarray(plain if name == "jpg" else plain.crop(box))[..., 3] == 0
                assert np.abs(np.asarray(opened)[behind] - [0, 128, 255]).mean() < 6
