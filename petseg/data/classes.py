"""Which class each value of masks is: by a classes file, else by their palette, else by the values that occur."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from petseg.config import DataConfig, StrictConfig, validated
from petseg.data.dataset import IGNORE, Class, Role, classes_from
from petseg.data.masks import MAX_VALUES, MaskFile, Table, grey, hex_colour
from petseg.errors import PetsegError, shown
from petseg.storage import read_text

CLASSES_FILE = "classes.toml"
MOST_CLASSES = 64  # that values without names are taken for
SMOOTH_SHARE = 90  # percent of all pixels, at the two ends of a range, from where the values between are smoothed edges
FEW_VALUES = 8  # that are classes wherever they lie
WHITE = 192  # the largest value from here on is white, or 255 that is ignored, and no class id


class ClassEntry(StrictConfig):
    """A class of a classes file."""

    name: str
    id: Annotated[int | None, Field(ge=0)] = None
    """Its value in grey or indexed masks. Left out by all: the place in the list, from 0."""
    colour: str | None = None
    """As "#0072B2", in every picture; in masks of colours what its pixels have."""
    role: Role | None = None
    """A cut-out keeps foreground, drops background and keeps half of boundary. Left out: by the name."""


class ClassesFile(StrictConfig):
    """A classes.toml."""

    classes: Annotated[tuple[ClassEntry, ...], Field(strict=False, min_length=2)]
    ignore: Annotated[tuple[int | str, ...], Field(strict=False)] = ()
    """Values or colours of masks that neither train nor count."""


def find_classes(folder: Path, config: DataConfig) -> ClassesFile | None:
    """Returns the classes file that the config names, in the data folder or by path, else the folder's own or None."""
    places = [folder / (config.classes or CLASSES_FILE), *([Path(config.classes)] if config.classes else [])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        if config.classes:
            raise PetsegError(
                f"data.classes is {shown(config.classes)}: no file in {folder} nor by path; name a TOML file"
            )
        return None
    text = read_text(path)
    try:
        fields = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise PetsegError(f"{path}: not readable as TOML ({error}); mend the file") from None
    return validated(ClassesFile, fields, source=str(path))


def named_classes(file: ClassesFile, config: DataConfig) -> tuple[Class, ...]:
    """Returns the classes of a classes file; PetsegError where a name, a colour or a role is wrong."""
    try:
        return classes_from([entry.model_dump(exclude={"id"}) for entry in file.classes])
    except ValueError as error:
        raise PetsegError(f"{config.classes or CLASSES_FILE}: {error}") from None


def choose_table(masks: Mapping[str, MaskFile], folder: Path, config: DataConfig) -> Table:
    """Returns what the values of a dataset's masks mean.

    Without a classes file values 0 and 1, or 0 and 255, are background and foreground; 255 beside small ids is
    ignored, as in Pascal VOC and Cityscapes. Raises `PetsegError`: a bad classes file, one value, smoothed edges, or
    16-bit values among colours.
    """
    by_colour = _needs_colours(masks.values())
    if by_colour:
        _refuse_wide(masks)
    given = find_classes(folder, config)
    return _named(given, by_colour, config) if given else _unnamed(masks, by_colour, config)


def _needs_colours(files: Iterable[MaskFile]) -> bool:
    """Returns whether values are colours: one that is no grey, or an index that is another colour in another file."""
    shades: dict[int, int] = {}
    for mask in files:
        if mask.kind == "colours" and (not mask.counts or any(grey(one & 0xFF) != one for one in mask.counts)):
            return True
        if any(shades.setdefault(index, colour) != colour for index, colour in mask.palette.items()):
            return True
    return False


def _refuse_wide(masks: Mapping[str, MaskFile]) -> None:
    """Refuses values beyond 255 beside colours: they are no shades of grey."""
    wide = {
        name: high for name, mask in masks.items() if mask.kind == "ids" and (high := max(mask.counts, default=0)) > 255
    }
    if wide:
        name, high = next(iter(wide.items()))
        others = f", and so do {len(wide) - 1:,} more" if len(wide) > 1 else ""
        raise PetsegError(
            f"mask {name} holds values up to {high}{others}, the other masks hold colours; wanted one kind of mask: "
            "write it in their colours"
        )


def _unnamed(masks: Mapping[str, MaskFile], by_colour: bool, config: DataConfig) -> Table:
    files = list(masks.values())
    empty, pixels = Table((), by_colour, {}, ""), Counter[int]()
    for mask in files:
        pixels.update(empty.values(mask))
    ignored = {_ignored(value, by_colour, "data.ignore") for value in config.ignore}
    if missing := sorted(ignored - pixels.keys()):
        held = _listed(pixels, empty)
        raise PetsegError(f"data.ignore names {empty.shown(missing[0])}, which no mask holds; they hold {held}")
    of_classes = {value: n for value, n in pixels.items() if value not in ignored}
    _refuse_odd(of_classes, empty, masks)
    others = pixels.keys() - ignored - {IGNORE}
    if not by_colour and others - {0} and max(others) < MOST_CLASSES:
        ignored.add(IGNORE)
    values = sorted(pixels.keys() - ignored)
    if len(values) < 2:
        held = f"only {_listed(values, empty)}" if values else "nothing"
        raise PetsegError(f"the masks hold {held} beside what is ignored; wanted at least two classes: label more")
    colours = {value: value for value in values} if by_colour else _palette(files, values)
    entries: list[dict[str, Any]] = [
        {"name": f"class {empty.shown(value)}", "role": None if value else "background"} for value in values
    ]
    if values in ([0, 1], [0, IGNORE]) and not colours:
        entries = [{"name": "background"}, {"name": "foreground"}]
    for entry, value in zip(entries, values, strict=True):
        entry["colour"] = hex_colour(colours[value]) if colours else None
    ids = {value: place for place, value in enumerate(values)} | dict.fromkeys(ignored, IGNORE)
    origin = "their palette" if colours and not by_colour else f"the {'colours' if by_colour else 'values'} that occur"
    return Table(classes_from(entries), by_colour, ids, origin)


def _palette(files: Sequence[MaskFile], values: Sequence[int]) -> dict[int, int]:
    """Returns value -> colour of indexed masks; nothing where that tells no classes apart, or is a ramp of greys."""
    shades = {index: colour for mask in files for index, colour in mask.palette.items()}
    colours = {value: shades[value] for value in values if value in shades}
    coloured = any(grey(colour & 0xFF) != colour for colour in colours.values())
    return colours if coloured and len({*colours.values()}) == len(values) else {}


def _holders(masks: Mapping[str, MaskFile], few: int) -> str:
    """Returns how many masks hold more than a few values, and the first of them."""
    names = [name for name, mask in masks.items() if len(mask.counts) > few]
    return f"{len(names):,} of {len(masks):,} masks ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _refuse_odd(pixels: Mapping[int, int], table: Table, masks: Mapping[str, MaskFile]) -> None:
    """Refuses values, of so many pixels, that no classes can be told from."""
    values, counted = sorted(pixels), all(mask.counts for mask in masks.values())
    advice = f"name the classes in {CLASSES_FILE}, or write the masks as PNG without smoothing"
    if counted and not table.by_colour and len(values) > 2 and values[-2] >= MOST_CLASSES:
        low, high = values[0], values[-1]
        # JPEG also spreads black and white over their neighbours
        spread = high >= WHITE and {low + 1, high - 1} <= pixels.keys()
        reach = (high - low) // 8 if spread else 0
        ends = sum(count for value, count in pixels.items() if min(value - low, high - value) <= reach)
        above, total = sum(count for value, count in pixels.items() if high - value <= reach), sum(pixels.values())
        share = 100 * ends / total
        objects = len(values) > MOST_CLASSES and above <= total - ends  # many small ones: the last is as small as any
        if share > SMOOTH_SHARE and (spread or len(values) > FEW_VALUES) and not objects:
            where = f"{'near ' if spread else ''}{low} and {high} on {share:.0f} % of the pixels"
            how = "smoothed or stored as JPEG" if spread else "smoothed"
            holders = _holders(masks, 2 if spread else FEW_VALUES)
            raise PetsegError(
                f"the masks hold {len(values)} values, {where}: the edges of {holders} look {how}; {advice}"
            )
    if not counted or len(values) > MOST_CLASSES:
        count = f"{len(values):,}" if counted else f"more than {MAX_VALUES:,}"
        kind = "colours" if table.by_colour else "values"
        if counted and not table.by_colour:
            advice += ", or, if they number objects, write 1 for all"
        raise PetsegError(f"the masks hold {count} {kind}; wanted one a class, at most {MOST_CLASSES}: {advice}")


def _listed(values: Iterable[int], table: Table) -> str:
    texts = [table.shown(value) for value in sorted(values)]
    return ", ".join(texts[:12]) + (", ..." if len(texts) > 12 else "")


def _named(file: ClassesFile, by_colour: bool, config: DataConfig) -> Table:
    """Returns the table of a classes file; by colour where the masks hold colours, else by id or place."""
    where, classes = config.classes or CLASSES_FILE, named_classes(file, config)
    ids: dict[int, int] = {}
    table = Table(classes, by_colour, ids, where)
    for place, value in enumerate(_values(file, by_colour, where)):
        if value in ids:
            both = f"{classes[ids[value]].name} and {classes[place].name}"
            raise PetsegError(f"{where}: classes {both} are both {table.shown(value)}; give each its own")
        ids[value] = place
    for source, ignored in ((where, file.ignore), ("data.ignore", config.ignore)):
        for given in ignored:
            value = _ignored(given, by_colour, source)
            if ids.setdefault(value, IGNORE) != IGNORE:
                raise PetsegError(f"{source}: {given} is ignored and class {classes[ids[value]].name}; leave one out")
    if not by_colour:
        ids.setdefault(IGNORE, IGNORE)
    return table


def _values(file: ClassesFile, by_colour: bool, where: str) -> list[int]:
    """Returns each class's value in masks."""
    if by_colour:
        if lacking := [entry.name for entry in file.classes if entry.colour is None]:
            raise PetsegError(f"{where}: class {lacking[0]} has no colour, and the masks hold colours; give it its own")
        return [int(str(entry.colour)[1:], 16) for entry in file.classes]
    given = [entry.id for entry in file.classes if entry.id is not None]
    if given and len(given) < len(file.classes):
        raise PetsegError(f"{where}: some classes have an id and some have none; give it to each, or to none")
    return given or list(range(len(file.classes)))


def _ignored(value: int | str, by_colour: bool, source: str) -> int:
    if isinstance(value, str) and by_colour and re.fullmatch("#[0-9A-Fa-f]{6}", value):
        return int(value[1:], 16)
    if isinstance(value, int) and not by_colour and value >= 0:
        return value
    wanted = 'colours, such as "#000000"' if by_colour else "values, such as 255"
    raise PetsegError(f"{source}: ignore names {shown(value)}; these masks hold {wanted}")
