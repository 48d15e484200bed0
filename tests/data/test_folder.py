"""A folder of images and masks: its layouts, what masks' values mean, its classes file, and what is refused."""

import errno
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from petseg.config import DataConfig
from petseg.data.cache import prepare
from petseg.data.check import check_dataset
from petseg.data.classes import find_classes
from petseg.data.images import open_sample
from petseg.data.sources import open_dataset, recognise
from tests.conftest import refused

IDS = np.kron(np.uint8([[0, 1], [2, 1]]), np.ones((8, 12), np.uint8))  # three classes, 16 x 24


def save(path, values, mode=None, colours=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values))
    if colours:
        image.putpalette([part for colour in colours for part in bytes.fromhex(colour)])
    (image.convert(mode) if mode else image).save(path)


def make(folder, masks, names=tuple("abcdef"), images="images", labels="masks", suffix=".png", **how):
    """Writes an image for each name, and masks in turn."""
    for place, name in enumerate(names):
        save(folder / images / f"{name}.jpg", np.full((16, 24, 3), 40 * place, np.uint8))
        save(folder / labels / f"{name}{suffix}", masks[place % len(masks)], **how)
    return folder


def opened(folder, **config):
    return open_dataset(folder, DataConfig(**config))


def ids_of(dataset, place=0):
    return open_sample(dataset, dataset.samples[place]).ids


def names_of(dataset):
    return [entry.name for entry in dataset.classes]


def save_six(folder, image, mask):
    for number in range(6):
        save(folder / f"{image.format(number)}.jpg", np.zeros((16, 24, 3), np.uint8))
        save(folder / f"{mask.format(number)}.png", IDS)


LAYOUTS = {  # an image's file, its mask's, its id
    "side by side": ("images/a{}", "masks/a{}", "a{}"),
    "nested": ("images/x/a{}", "masks/x/a{}", "x_a{}"),
    "splits below": ("images/train/a{}", "masks/train/a{}", "a{}"),
    "splits above": ("training/images/a{}", "training/masks/a{}", "a{}"),
    "another word, an ending": ("Imgs/a{}", "Labels/a{}_mask", "a{}"),
    "annotations": ("images/Train/x/a{}", "annotations/Train/x/a{}_L", "x_a{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    image, mask, wanted = LAYOUTS[layout]
    save_six(tmp_path, image, mask)
    dataset = opened(tmp_path)
    assert [sample.id for sample in dataset.samples] == [wanted.format(number) for number in range(6)]
    assert (dataset.skipped, dataset.name) == ({}, tmp_path.name)
    assert recognise(tmp_path)[1] == "images and masks in folders"
    assert {part: len(ids) for part, ids in dataset.splits.items()} == {"train": 4, "val": 1, "test": 1}


PAIRS = {  # an image's file, its mask's, the line on the folder
    "words on both sides": ("images/{}_img", "masks/{}_mask", "images and masks in folders"),
    "prefixes": ("images/img_{}", "masks/mask_{}", "images and masks in folders"),
    "prefixes of digits": ("images/image{}", "labels/label{}", "images and masks in folders"),
    "another word of the image's": ("images/{}_raw", "masks/{}_raw_seg", "images and masks in folders"),
    "one folder": ("{}", "{}_mask", "images and masks in one folder"),
    "one folder with splits": ("train/{}_img", "train/{}_gt", "images and masks in one folder"),
    "capitals": ("Img/{}", "Lbl/{}", "images and masks in folders"),
    "raw above": ("raw/images/{}", "raw/masks/{}", "images and masks in folders"),
    **{
        f"{images} and {masks}": (f"{images}/{{}}", f"{masks}/{{}}", "images and masks in folders")
        for images in ("raw", "input")
        for masks in ("label", "gt", "annotation", "ground_truth", "segmentations", "targets")
    },
}


@pytest.mark.parametrize("pair", PAIRS)
def test_names_of_a_pair(pair, tmp_path):
    image, mask, line = PAIRS[pair]
    save_six(tmp_path, image, mask)
    (tmp_path / "readme.txt").write_text("x")
    dataset = opened(tmp_path)
    assert recognise(tmp_path)[1] == line
    assert dataset.provenance.startswith(f"{line}, classes from")
    assert [(one.image.stem, one.label.stem) for one in dataset.samples] == [
        (image.format(number).split("/")[-1], mask.format(number).split("/")[-1]) for number in range(6)
    ]
    assert dataset.skipped == {}


def test_accents_that_macos_writes_apart(tmp_path):
    apart = normalize("NFD", "é")
    for image, mask in (
        (f"{apart}1", "é1"),
        ("é2", f"{apart}2_mask"),
        *((f"{apart}{n}", f"{apart}{n}") for n in (3, 4)),
    ):
        save(tmp_path / "images" / f"{image}.jpg", np.zeros((16, 24, 3), np.uint8))
        save(tmp_path / "masks" / f"{mask}.png", IDS)
    (tmp_path / "train.txt").write_text(f"é1\n{apart}2\né3\n", encoding="utf-8")
    (tmp_path / "val.txt").write_text(f"images/{apart}4.jpg\n", encoding="utf-8")
    dataset = opened(tmp_path)
    assert {sample.id for sample in dataset.samples} == {f"{apart}1", "é2", f"{apart}3", f"{apart}4"}, "as they were"
    assert ({*dataset.splits["train"]}, dataset.splits["val"]) == ({f"{apart}1", "é2", f"{apart}3"}, (f"{apart}4",))
    assert dataset.skipped == {}


def test_of_two_readings_none_is_taken(tmp_path):
    make(tmp_path, [IDS])
    for name in ("images/g", "images/h_img", "images/h_raw"):
        save(tmp_path / f"{name}.jpg", np.zeros((16, 24, 3), np.uint8))
    for name in ("g_mask", "g_label", "h_mask", "a_mask"):
        save(tmp_path / "masks" / f"{name}.png", IDS)
    save(tmp_path / "raw" / "a.png", IDS)  # images/ is there
    dataset = opened(tmp_path)
    assert [(one.id, one.label.stem) for one in dataset.samples] == [(name, name) for name in "abcdef"]
    assert dataset.skipped == {
        "image without mask": ("g", "h_img", "h_raw"),
        "mask without image": ("a_mask", "g_label", "g_mask", "h_mask"),
    }
    save(tmp_path / "labels" / "a.png", IDS)
    refused("^data folder .*: masks/ and labels/ both hold images; wanted one folder of images, one", opened, tmp_path)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (
            ("images/1.jpg", "images/2.jpg", "masks/x/1.png"),
            r"2 images \(images/1\.jpg\) and 1 mask \(masks/x/1\.png\), no two of one name; wanted images/NAME",
        ),
        (("images/1.npz", "masks/1.npz"), r"0 images and 0 masks, .*NAME_mask\.png; skipped files ending \.npz$"),
        (
            ("pics/1.jpg", "annos/1.png"),
            r"no labelled images that petseg knows \(it holds annos/, pics/\); wanted images/",
        ),
    ],
)
def test_where_nothing_matches_the_message_names_what_is_there(files, match, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    refused(match, opened, tmp_path)


def test_folders_may_be_links_even_such_as_lead_back(tmp_path):
    make(tmp_path / "there", [IDS])
    here = tmp_path / "here"
    here.mkdir()
    for name in ("images", "masks"):
        (here / name).symlink_to(tmp_path / "there" / name)
    (tmp_path / "there" / "images" / "back").symlink_to(here)
    assert [sample.id for sample in opened(here).samples] == [*"abcdef"]


def test_a_sub_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    """The tests may run as root, who may read all."""
    make(tmp_path, [IDS])
    make(tmp_path, [IDS], images="images/x", labels="masks/x")
    scandir = os.scandir

    def denied(path):
        if Path(path) == tmp_path / "images" / "x":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    refused(r"images/x: folder cannot be read \(Permission denied\); make it readable, or move", opened, tmp_path)


def test_lists_come_before_folders_and_names_of_two_folders_stay_apart(tmp_path):
    make(tmp_path, [IDS], images="images/train", labels="masks/train")
    make(tmp_path, [IDS], names="axy", images="images/val", labels="masks/val")
    dataset = opened(tmp_path)
    assert {sample.id for sample in dataset.samples} == {*"bcdefxy", "train_a", "val_a"}
    assert dataset.splits == {"train": (*"bcdef", "train_a"), "val": ("val_a", "x", "y")}
    (tmp_path / "train.txt").write_text("b\nc.jpg\n\nimages/train/d.jpg masks/train/d.png\nnowhere\n")
    (tmp_path / "val.txt").write_text("train/a\n")
    dataset = opened(tmp_path)
    assert dataset.splits == {"train": tuple("bcd"), "val": ("train_a",)}
    assert dataset.skipped["listed, but no pair"] == ("train.txt: nowhere",)
    assert dataset.skipped["pair in no split"] == (*"ef", "val_a", "x", "y")
    (tmp_path / "val.txt").write_text("b\n")
    refused(r"val\.txt: b is in train as well; an image lies in one split", opened, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_lists_as_windows_writes_them(encoding, tmp_path):
    make(tmp_path, [IDS], names=("é", "my dog", *"cdef"))
    lists = {
        "train": "images\\é.jpg\r\n.\\images\\my dog.jpg\r\nc\r\nd\r\n",
        "val": "C:\\my\\e.jpg masks\\e.png\r\nf\r\n",
    }
    for name, text in lists.items():
        content = text.encode(encoding)
        (tmp_path / f"{name}.txt").write_bytes(BOM_UTF16_BE + content if encoding == "utf-16-be" else content)
    dataset = opened(tmp_path)
    assert dataset.splits["train"] == ("c", "d", "my dog", "é")
    assert {*dataset.splits["val"], *dataset.splits.get("test", ())} == {"e", "f"}
    assert dataset.skipped == {}


def test_a_list_of_no_pair_or_no_text_is_refused_and_one_of_images_without_masks_is_not(tmp_path):
    make(tmp_path, [IDS])
    save(tmp_path / "images" / "new.jpg", IDS)
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    (tmp_path / "val.txt").write_text("d\n")
    (tmp_path / "test.txt").write_text("images/new.jpg\n")
    assert opened(tmp_path).skipped["listed, but no pair"] == ("test.txt: images/new.jpg",)
    (tmp_path / "test.txt").write_text("\n")
    assert opened(tmp_path).splits["train"] == ("a", "b", "c")
    (tmp_path / "test.txt").write_text("scan_1\nscan_2\n")
    line = (
        r"test\.txt: 2 lines, none of a pair \(first: 'scan_1'\); wanted names such as 'a': correct the list, or remove"
    )
    refused(line, opened, tmp_path)
    for content in ("é".encode("latin-1"), "a\nb\n".encode("utf-16-le"), BOM_UTF16_LE + b"a"):
        (tmp_path / "test.txt").write_bytes(content)
        refused(r"test\.txt: is not UTF-8 text; save it as UTF-8$", opened, tmp_path)


def test_what_has_no_other_half_or_is_no_image_is_named(tmp_path):
    make(tmp_path, [IDS])
    save(tmp_path / "images" / "alone.jpg", IDS)
    save(tmp_path / "images" / "a.png", IDS)
    save(tmp_path / "masks" / "lost.png", IDS)
    for name in ("masks/Thumbs.db", "images/._a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert opened(tmp_path).skipped == {
        "second image of one name": ("images/a.png",),
        "not an image among the masks": ("masks/Thumbs.db",),
        "hidden file among the images": ("images/._a.jpg",),
        "image without mask": ("alone",),
        "mask without image": ("lost",),
    }


COLOURS = ("204060", "FF8000", "00C000")
PLANES = np.uint8([list(bytes.fromhex(colour)) for colour in COLOURS])[IDS]
NUMBERED = ["class 0", "class 1", "class 2"]
VOID = np.where(IDS == 2, 255, IDS).astype(np.uint8)
HIGH = np.pad(np.uint8([[1, 66, 150, 151]]), ((0, 15), (0, 20)))
MASKS = {  # masks -> how they are saved, class names, the first one's class ids
    "grey ids": ([IDS], {}, NUMBERED, IDS),
    "ids that leave gaps": ([7 * IDS + 3], {}, ["class 3", "class 10", "class 17"], IDS),
    "ids and 255": ([VOID, IDS], {}, NUMBERED, VOID),
    "small regions of high ids": ([HIGH], {}, [f"class {n}" for n in (0, 1, 66, 150, 151)], np.unique_inverse(HIGH)[1]),
    "three levels": ([np.uint8([0, 128, 255])[IDS]], {}, ["class 0", "class 128", "class 255"], IDS),
    "16 bits": ([IDS * np.uint16(1000)], {}, ["class 0", "class 1000", "class 2000"], IDS),
    "binary 0 and 255": ([255 * (IDS == 1).astype(np.uint8)], {}, ["background", "foreground"], IDS % 2),
    "binary of one bit": ([IDS == 1], {}, ["background", "foreground"], IDS % 2),
    "grey ids saved as RGB": ([IDS], {"mode": "RGB"}, NUMBERED, IDS),
    "one class in each file": ([0 * IDS, 0 * IDS + 1, IDS], {}, NUMBERED, 0 * IDS),
    "indexed": ([IDS], {"colours": COLOURS}, NUMBERED, IDS),
    "colours": ([PLANES], {}, ["class #00C000", "class #204060", "class #FF8000"], np.uint8([1, 2, 0])[IDS]),
}
MASKS["grey ids with opaque alpha"] = ([IDS], {"mode": "LA"}, NUMBERED, IDS)
MASKS["colours with opaque alpha"] = ([PLANES], {"mode": "RGBA"}, *MASKS["colours"][2:])


@pytest.mark.parametrize("kind", MASKS)
def test_values_without_names(kind, tmp_path):
    masks, how, wanted, ids = MASKS[kind]
    dataset = opened(make(tmp_path, masks, **how))
    assert names_of(dataset) == wanted
    assert (ids_of(dataset), ids_of(dataset).dtype) == (pytest.approx(ids), np.uint8)
    assert dataset.holds["a"] == {*np.unique(ids).tolist()} - {255}
    if kind == "indexed":
        assert [entry.colour for entry in dataset.classes] == [f"#{colour}" for colour in COLOURS]
    assert prepare(dataset, 16).left_out == {}


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_with_transparent_pixels_is_left_out_with_one_line(mode, tmp_path):
    make(tmp_path, [IDS])
    mask = Image.fromarray(IDS).convert(mode)
    mask.putalpha(Image.fromarray(np.where(IDS == 1, 254, 255).astype(np.uint8)))
    mask.save(tmp_path / "masks" / "b.png")
    line = r"b: mask has transparent pixels \(192 of 384\); wanted none: save it without alpha, each class in a value"
    dataset = opened(tmp_path)
    refused(f"^{line}", dataset.read_label, dataset.samples[1])
    assert list(prepare(dataset, 16).left_out) == ["b"]
    (row,) = [row for row in check_dataset(dataset, 16).findings if row.found == "mask with transparent pixels"]
    assert (row.names, row.advice[:26]) == (("b",), "Save masks without alpha, ")
    for name in "acdef":
        mask.save(tmp_path / "masks" / f"{name}.png")
    refused(rf"none of its 6 masks can be used \(first: a: {line[3:]}", opened, tmp_path)


def test_a_palette_of_another_order_in_each_file_counts_by_its_colours(tmp_path):
    make(tmp_path, [IDS], colours=COLOURS)
    save(tmp_path / "masks" / "b.png", 2 - IDS, colours=COLOURS[::-1])
    dataset = opened(tmp_path)
    assert names_of(dataset) == ["class #00C000", "class #204060", "class #FF8000"]
    assert (ids_of(dataset, 0) == ids_of(dataset, 1)).all()


@pytest.mark.parametrize("named", [False, True])
def test_one_16_bit_mask_among_colours_is_named(named, tmp_path):
    make(tmp_path, [PLANES])
    save(tmp_path / "masks" / "c.png", IDS.astype(np.uint16) * 1000)
    rows = [f'name = "{colour}"\ncolour = "#{colour}"' for colour in COLOURS]
    if named:
        (tmp_path / "classes.toml").write_text(classes_file(*rows))
    line = "^mask c holds values up to 2000{}, the other masks hold colours; wanted one kind of mask: write it in their"
    refused(line.format(""), opened, tmp_path)
    save(tmp_path / "masks" / "d.png", IDS.astype(np.uint16) * 1000)
    refused(line.format(", and so do 1 more"), opened, tmp_path)


NAMED = '[[classes]]\nname = "soil"\nrole = "background"\n[[classes]]\nname = "leaf"\n[[classes]]\nname = "fruit"\n'


def test_a_classes_file_names_values_or_colours(tmp_path):
    documented = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (tmp_path / "documented.toml").write_text(documented.partition("```toml\n")[2].partition("```")[0])
    found = find_classes(tmp_path, DataConfig(classes="documented.toml"))
    assert [(entry.name, entry.id) for entry in found.classes] == [("sky", 0), ("road", 3)]
    make(tmp_path / "grey", [7 * IDS])
    make(tmp_path / "colour", [PLANES])
    by_place = tmp_path / "elsewhere.toml"
    by_place.write_text(NAMED)
    make(tmp_path / "place", [IDS])
    dataset = opened(tmp_path / "place", classes=str(by_place))
    assert (names_of(dataset), dataset.classes[0].role) == (["soil", "leaf", "fruit"], "background")
    assert (ids_of(dataset) == IDS).all()
    (tmp_path / "grey" / "classes.toml").write_text(
        'ignore = [7]\n[[classes]]\nname = "leaf"\nid = 14\ncolour = "#00AA00"\n[[classes]]\nname = "soil"\nid = 0\n'
    )
    dataset = opened(tmp_path / "grey")
    assert (names_of(dataset), dataset.classes[0].colour) == (["leaf", "soil"], "#00AA00")
    assert (ids_of(dataset) == np.uint8([1, 255, 0])[IDS]).all()
    file = "".join(f'[[classes]]\nname = "{name}"\ncolour = "#{name}"\n' for name in COLOURS)
    (tmp_path / "colour" / "classes.toml").write_text(file)
    dataset = opened(tmp_path / "colour")
    assert (names_of(dataset), dataset.provenance.partition(";")[0]) == (
        [*COLOURS],
        "images and masks in folders, classes from classes.toml",
    )
    assert (ids_of(dataset) == IDS).all()


def classes_file(*rows, ignore=""):
    return f"ignore = [{ignore}]\n" + "".join(f"[[classes]]\n{row}\n" for row in rows)


LEAF, SOIL = 'name = "leaf"', 'name = "soil"'
RAMP = np.uint8([[0] * 80 + [*range(0, 256, 20)] + [255] * 60] * 16)
REFUSED = [  # masks, classes file, data.ignore, what the error says
    ([IDS], "classes = [", (), r"classes\.toml: not readable as TOML \("),
    ([IDS], classes_file(LEAF), (), r"classes\.toml: classes is .*; tuple should have at least 2 items"),
    ([IDS], classes_file(LEAF, LEAF), (), r"classes\.toml: two classes are named leaf; give each its own name"),
    (
        [IDS],
        classes_file(LEAF, "nam = 'x'"),
        (),
        r"field 'classes\.1\.nam' is unknown; choose one of: classes\.1\.name, ",
    ),
    ([IDS], classes_file(LEAF, SOIL + "\nignore = [2]"), (), r"ignore stands below \[\[classes\]\]; it is of the w"),
    ([IDS], classes_file(LEAF, SOIL + "\nid = 0"), (), r"some classes have an id and some have none"),
    (
        [IDS],
        classes_file(LEAF + "\nid = 1", SOIL + "\nid = 1"),
        (),
        r"classes leaf and soil are both 1; give each its own",
    ),
    ([IDS], classes_file(LEAF, SOIL + '\ncolour = "red"'), (), r"class soil has colour 'red'; wanted one as #0072B2"),
    ([IDS], classes_file(LEAF, SOIL, ignore="1"), (), r"classes\.toml: 1 is ignored and class soil; leave one out"),
    (
        [IDS],
        classes_file(LEAF, SOIL),
        ("#000000",),
        r"data\.ignore: ignore names '#000000'; these masks hold values, such",
    ),
    ([PLANES], classes_file(LEAF, SOIL), (), r"class leaf has no colour, and the masks hold colours; give it its own"),
    ([PLANES], None, (0,), r"data\.ignore: ignore names 0; these masks hold colours, such as \"#000000\""),
    ([IDS], None, (7,), r"data\.ignore names 7, which no mask holds; they hold 0, 1, 2"),
    ([IDS], None, (1, 2), r"the masks hold only 0 beside what is ignored; wanted at least two classes"),
    ([0 * IDS], None, (), r"the masks hold only 0 beside what is ignored"),
    (
        [RAMP, np.uint8(255 * (RAMP > 0))],
        None,
        (),
        r"hold 14 values, 0 and 255 on 9\d % of the pixels: the edges of 3 of 6 masks \(a, c, e\) look smoothed; name",
    ),
    (
        [np.arange(100, dtype=np.uint8)[None]],
        None,
        (),
        r"the masks hold 100 values; wanted one a class, at most 64.* number objects, w",
    ),
    (
        [np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)],
        None,
        (),
        r"hold more than 4,096 colours; wanted",
    ),
]


@pytest.mark.parametrize(("masks", "file", "ignore", "match"), REFUSED, ids=[match for *_, match in REFUSED])
def test_values_and_classes_files_that_are_refused(masks, file, ignore, match, tmp_path):
    make(tmp_path, masks)
    if file is not None:
        (tmp_path / "classes.toml").write_text(file)
    refused(match, opened, tmp_path, ignore=ignore)


@pytest.mark.parametrize("count", [90, 230])
def test_small_numbered_objects_are_not_called_smoothed(count, tmp_path):
    """Black and white among them would have more white than edge."""
    objects = np.zeros((200, 200), np.uint16)
    for number in range(count):
        row, column = (12 * each for each in divmod(number, 16))
        objects[row : row + 3, column : column + 3] = number + 1
    make(tmp_path, [objects])
    match = rf"^the masks hold {count + 1} values; wanted one a class, at most 64: .*, if they number objects, write 1"
    refused(match, opened, tmp_path)


@pytest.mark.parametrize("quality", [30, 75, 95, 100])
@pytest.mark.parametrize("again", [False, True], ids=["JPEG", "PNG made of JPEG"])
def test_black_and_white_masks_that_were_jpeg_are_refused(quality, again, tmp_path):
    y, x = np.mgrid[:96, :96]
    make(tmp_path, [255 * ((x - 48) ** 2 + (y - 50) ** 2 < 30**2).astype(np.uint8)], names="abcdef")
    for path in (tmp_path / "masks").iterdir():
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"), quality=quality)
        with Image.open(path.with_suffix(".jpg")) as lossy:
            lossy.save(path)
        path.with_suffix(".jpg" if again else ".png").unlink()
    match = (
        r"values, near 0 and 255 on \d+ % .* edges of 6 of 6 masks \(a, b, c, \.\.\.\) look smoothed or stored as JPEG"
    )
    refused(match, opened, tmp_path)


def test_masks_of_0_and_1_among_masks_of_0_and_255_are_a_warning(tmp_path):
    make(tmp_path, [IDS % 2, 255 * (IDS % 2)])
    check = check_dataset(opened(tmp_path), 16)
    rows = [row for row in check.findings if row.found == "label of background and ignored pixels alone"]
    assert [(row.level, row.names) for row in rows] == [("warning", tuple("bdf"))]
    assert check.ignored == 0.25


def test_class_ids_in_jpeg_are_a_warning(tmp_path):
    make(tmp_path, [0 * IDS, 0 * IDS + 1], suffix=".jpg")
    rows = [row for row in check_dataset(opened(tmp_path), 16).findings if row.found == "mask stored as JPEG"]
    assert [(row.level, row.count) for row in rows] == [("warning", 6)]


@pytest.mark.parametrize(
    ("masks", "extra", "wrong"),
    [
        (IDS, "", "value 2, which no class has (nearest: 1, soil)"),
        (PLANES, '\ncolour = "#%s"', "colour #00C000, which"),
    ],
    ids=["value", "colour"],
)
def test_a_value_of_no_class_names_file_and_nearest_is_left_out_by_check_and_does_not_train(
    masks, extra, wrong, tmp_path
):
    make(tmp_path, [masks])
    colours = ("204060", "FF8000") if extra else ("", "")
    rows = [name + (extra % colour if extra else "") for name, colour in zip((LEAF, SOIL), colours, strict=True)]
    (tmp_path / "classes.toml").write_text(classes_file(*rows))
    dataset = opened(tmp_path)
    assert f"mask f has 96 pixels of {wrong}" in dataset.refusal
    assert "and so have 5 other masks; name it in classes.toml, as a class or under ignore" in dataset.refusal
    refused("^data folder .*which no class has", prepare, dataset, 16)
    (row,) = [row for row in check_dataset(dataset, 16).findings if row.action == "stops training"]
    assert (row.level, row.count, row.names) == ("error", 6, tuple("abcdef"))


def test_a_damaged_mask_is_left_out_and_a_memo_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("PETSEG_CACHE", str(tmp_path / "cache"))
    make(tmp_path / "my", [IDS])
    (tmp_path / "my" / "masks" / "b.png").write_bytes(b"no image")
    dataset = opened(tmp_path / "my")
    assert list(prepare(dataset, 16).left_out) == ["b"]
    (memo,) = (tmp_path / "cache" / "masks-v2").iterdir()
    for text in ("", "[]", '{"a": 3}', '{"a": [1, {"x": 2}, 3]}'):
        memo.write_text(text)
        assert opened(tmp_path / "my").fingerprint == dataset.fingerprint
    for path in (tmp_path / "my" / "masks").iterdir():
        path.write_bytes(b"no image")
    undecoded = r"first: a: mask cannot be decoded .*; wanted JPEG, "
    refused(rf"data folder .*my: none of its 6 masks can be used \({undecoded}", opened, tmp_path / "my")
