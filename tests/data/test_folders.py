"""Promises about data=folder: pictures where they are, as people have them."""

import os
import random
import threading
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bestrun.class_names import cleaned
from bestrun.data import folders, known, pictures
from bestrun.data.dataset import load_dataset
from bestrun.data.folders import find, folder_pictures
from bestrun.data.pack import LOOK, pack
from bestrun.data.pictures import Look
from bestrun.data.pixels import Notes
from bestrun.errors import DataError, SettingsError
from support.drawings import draw, draw_classes, encoded, numbers

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (4, 5, 3), np.uint8)


def load(folder: Path, **settings):
    return load_dataset("folder", dir=str(folder), **{"validation_size": 0.2} | settings)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_classes(tmp_path / "photos")


# ---- layouts

LAYOUTS = {
    "a folder a class": ("{kind}",),
    "train, val, test": ("train/{kind}", "val/{kind}", "test/{kind}"),
    "Train, Valid, TEST": ("Train/{kind}", "Valid/{kind}", "TEST/{kind}"),
    "training, validation, testing": ("training/{kind}", "validation/{kind}", "testing/{kind}"),
    "train and test": ("train/{kind}", None, "test/{kind}"),
    "train and val": ("train/{kind}", "val/{kind}", None),
    "folders in a class": ("{kind}/more", "{kind}/other/deep"),
}


@pytest.mark.parametrize("places", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_read_as_it_is_and_what_it_lacks_is_cut_by_class(tmp_path, places):
    made: dict[int, list[int]] = {}
    for number, (copy, kind) in enumerate(product(range(20), "abc")):
        which = copy % len(places)
        if places[which]:
            draw(tmp_path / "p" / places[which].format(kind=kind) / f"{copy}.png", number)
            made.setdefault(which if len(places) == 3 else 0, []).append(number)
    data = load(tmp_path / "p")
    splits = [data.train, data.validation, data.test]
    for which, split in enumerate(splits):
        assert [number % 3 for number in numbers(split.images)] == split.labels.tolist()
        if which in made and which:
            assert sorted(numbers(split.images)) == made[which], "a split of the folder's own"
        assert len(set(np.bincount(split.labels).tolist())) == 1, "each class by its share"
    everything = [number for split in splits for number in numbers(split.images)]
    assert sorted(everything) == sorted(number for those in made.values() for number in those)
    assert data.class_names == ("a", "b", "c") and data.num_classes == 3 and data.image_shape == (4, 5, 1)


def test_shares_are_of_each_class_and_another_seed_draws_others(photos):
    data = load(photos, test_size=0.3, validation_size=0.3)
    assert [np.bincount(split.labels).tolist() for split in (data.train, data.validation, data.test)] == [
        [5, 5, 5],
        [2, 2, 2],
        [3, 3, 3],
    ]
    assert data.digest == load(photos, test_size=0.3, validation_size=0.3).digest
    other = load(photos, test_size=0.3, validation_size=0.3, split_seed=1)
    assert sorted(numbers(other.test.images)) != sorted(numbers(data.test.images))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.8])
def test_a_single_picture_of_a_class_trains_and_of_two_one_does(photos, share):
    draw(photos / "fox/a.png", 77)
    for number in (88, 89):
        draw(photos / "gnu" / f"{number}.png", number)
    data = load(photos, test_size=share, validation_size=share)
    assert 77 in numbers(data.train.images)
    assert len({88, 89} & set(numbers(data.train.images))) == 1
    assert set(data.train.labels.tolist()) == set(range(5))


def test_neither_classes_nor_pictures_are_in_the_order_of_the_file_system(tmp_path, monkeypatch):
    for number in range(36):
        draw(tmp_path / "p" / str(number % 12 + 1) / ("x" * (number % 5)) / f"{number}.png", number)
    before, real = load(tmp_path / "p"), os.scandir

    class Reversed:
        def __init__(self, path):
            with real(path) as entries:
                self.entries = list(entries)[::-1]
            random.Random(0).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(folders.os, "scandir", Reversed)
    after = load(tmp_path / "p")
    assert after.digest == before.digest and after.class_names == tuple(map(str, range(1, 13)))


def test_what_systems_leave_there_is_passed_over_and_counted(photos):
    for place in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini", "dog/._1.png", ".git/config"):
        path = photos / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    draw(photos / "__MACOSX/cat/._1.png", 1)
    (photos / "cat/notes.txt").write_text("x")
    data = load(photos)
    assert data.num_classes == 3 and sum(map(len, (data.train, data.validation, data.test))) == 30
    assert not [line for line in data.warnings if "the brightest pixel" not in line]
    assert data.remarks == (
        f"{photos}: left out 1 .txt files, the first is {photos}/cat/notes.txt",
        f"{photos}: left out 7 hidden files, Thumbs.db and the like",
    )


# ---- formats

FORMATS = {
    "png": ("PNG", {}),
    "PNG": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95}),
    "JPEG": ("JPEG", {"quality": 95}),
    "webp": ("WEBP", {"lossless": True}),
    "WebP": ("WEBP", {"quality": 95}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "tif": ("TIFF", {}),
    "TIFF": ("TIFF", {"compression": "tiff_lzw"}),
}


@pytest.mark.parametrize(("ending", "kind", "options"), [(key, *row) for key, row in FORMATS.items()], ids=FORMATS)
def test_a_picture_of_each_format_is_read_whatever_the_case_of_its_ending(photos, ending, kind, options):
    smooth = np.linspace(0, 255, 60).astype(np.uint8).reshape(4, 5, 3) // 64 * 64
    (photos / "cat" / f"x.{ending}").write_bytes(encoded(smooth, kind, **options))
    found = find(photos)
    assert [path.name for path in found.splits["train"]["cat"]][-1] == f"x.{ending}" and not found.left_out
    one = pictures.look_through(
        folders.Files({"train": [photos / "cat" / f"x.{ending}"]}),
        {"train": np.zeros(1, np.int64)},
        {"train": "here"},
        ["cat"],
        Look(),
        Notes(),
    )
    ((number, image),) = one.images("train")
    assert number == 0 and one.image_shape == (4, 5, 3)
    assert np.abs(image.astype(int) - smooth).max() <= (48 if kind == "JPEG" or ending == "WebP" else 0)


def test_of_several_pictures_in_a_file_the_first_counts(photos):
    frames = [Image.new("L", (5, 4), value) for value in (44, 200)]
    for kind in ("gif", "tiff", "webp", "png"):
        options = {"lossless": True} if kind == "webp" else {}
        frames[0].save(photos / "cat" / f"x.{kind}", save_all=True, append_images=frames[1:], **options)
    data = load(photos)
    everything = [int(i.flat[0]) for split in (data.train, data.validation, data.test) for i in split.images]
    assert everything.count(44) == 4 and 200 not in everything


def test_a_picture_that_was_held_turned_has_its_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for label, name in enumerate("ab"):
        for number in range(6):
            ending = ("png", "jpg", "tif", "webp")[number % 4]
            draw(tmp_path / "p" / name / f"{number}.{ending}", 100 * label + number, exif=exif)
    late = (tmp_path / "p/a/0.png").read_bytes()  # the chunk that says so behind the pixels
    begin = late.index(b"eXIf") - 4
    length = 12 + int.from_bytes(late[begin : begin + 4], "big")
    chunk, end = late[begin : begin + length], late.index(b"IEND") - 4
    (tmp_path / "p/a/0.png").write_bytes(late[:begin] + late[begin + length : end] + chunk + late[end:])
    assert load(tmp_path / "p").image_shape[:2] == (5, 4)


@pytest.mark.parametrize(("channels", "expected"), [(None, 1), (1, 1), (3, 3)])
def test_images_are_grey_if_all_pictures_are_or_as_the_setting_says(photos, channels, expected):
    assert load(photos, channels=channels).image_shape == (4, 5, expected)
    draw(photos / "cat/c.png", 200, mode="RGB")
    assert load(photos, channels=channels).image_shape == (4, 5, channels or 3)


HALVES = np.concatenate([np.full((8, 8), 40), np.full((8, 8), 200)], axis=1).astype(np.uint8)  # 16 wide, 8 high
FITS = {
    ("stretch", "8x8"): (40, 200, 40, 200),
    ("crop", "8x8"): (40, 200, 40, 200),
    ("pad", "16x16"): (0, 0, 0, 0),
    ("pad", "32x8"): (0, 0, 0, 0),
    ("crop", "4x8"): (40, 200, 40, 200),
}


@pytest.mark.parametrize(("how", "corners"), FITS.items(), ids=[f"{way} to {size}" for way, size in FITS])
def test_pictures_of_another_size_are_stretched_cropped_or_padded(photos, how, corners):
    way, size = how
    for path in photos.rglob("*.png"):
        Image.fromarray(HALVES).save(path)
    data = load(photos, size=size, fit=way)
    width, height = map(int, size.split("x"))
    assert data.image_shape == (height, width, 1)
    image = data.train.images[0, ..., 0]
    found = image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]
    assert np.abs(np.array(found, int) - corners).max() < 12
    middle = image[height // 2]
    assert abs(int(middle[width // 2 - 2]) - 40) < 30 and abs(int(middle[width // 2 + 1]) - 200) < 30


def test_a_picture_one_pixel_wide_can_be_padded_and_cropped(photos):
    draw(photos / "cat/thin.png", 99, (1, 5000))
    for way in ("pad", "crop", "stretch"):
        assert load(photos, size="6x6", fit=way).image_shape == (6, 6, 1)


def test_pictures_of_several_sizes_need_one(photos):
    draw(photos / "cat/large.png", 200, (50, 10))
    with pytest.raises(DataError, match=r"png: found 5x4 pixels; expected 50x10 as in .*|type data.size=") as error:
        load(photos)
    assert "type data.size=" in str(error.value) and "\n" not in str(error.value)
    assert load(photos, size="8x6").image_shape == (6, 8, 1)


# ---- damaged

DAMAGE = {
    "its header": lambda raw: raw[:20],
    "its pixels": lambda raw: raw[: len(raw) // 2],
    "all of it": lambda raw: b"<html>",
    "nothing there": lambda raw: b"",
}


@pytest.mark.parametrize(("highest", "told"), [(4095, 15), (1023, 3), (65535, None)])
@pytest.mark.parametrize("in_memory", [True, False])
def test_pictures_of_16_bits_that_use_few_of_them_are_told(tmp_path, highest, told, in_memory):
    ramp = np.linspace(0, highest, 64).astype(np.uint16).reshape(8, 8)
    for name, turned in (("a", ramp), ("b", ramp.T)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(np.roll(turned, number)).save(tmp_path / "data" / name / f"{number}.png")
    warnings = load(tmp_path / "data", in_memory=in_memory).warnings
    found = [line for line in warnings if "the brightest pixel" in line]
    assert [f"is {told} of 255" in line for line in found] == ([True] if told else [])


@pytest.mark.parametrize("spoil", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_picture_names_itself_or_is_left_out_and_counted(photos, spoil):
    noise = encoded(RANDOM.integers(0, 256, (4, 5), np.uint8))
    for number in (3, 5):
        (photos / f"dog/{number}.png").write_bytes(spoil(noise))
    with pytest.raises(DataError, match=r"dog/\d.png: found .*leave such pictures out: data.damaged=skip$") as error:
        load(photos)
    assert "\n" not in str(error.value)
    data = load(photos, damaged="skip")
    assert sum(map(len, (data.train, data.validation, data.test))) == 28
    for split in (data.train, data.validation, data.test):
        assert [number // 10 for number in numbers(split.images)] == split.labels.tolist()
    told = [line for line in data.warnings if "could not" in line or "cannot be read" in line]
    assert sum(int(line.split()[0]) for line in told) == 2 and f"{photos}/dog/" in told[0]


def test_skipping_changes_no_other_pictures_split(photos):
    before = load(photos)
    gone = 10 + 3
    (photos / "dog/3.png").write_bytes(b"")
    after = load(photos, damaged="skip")
    for part in ("train", "validation", "test"):
        was = [number for number in numbers(getattr(before, part).images) if number != gone]
        assert numbers(getattr(after, part).images) == was


def test_a_class_of_damaged_pictures_is_refused_by_name(photos):
    for path in (photos / "emu").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no picture of class emu that could be read"):
        load(photos, damaged="skip")


LINKS = {
    "a FIFO": (lambda path: os.mkfifo(path), "not a regular file"),
    "a broken link": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "words"), LINKS.values(), ids=LINKS)
def test_what_is_no_file_is_a_damaged_picture(photos, make, words):
    make(photos / "cat/x.jpg")
    with pytest.raises(DataError, match=f"cat/x.jpg: found .*{words}"):
        load(photos)
    assert load(photos, damaged="skip").num_classes == 3


def test_a_picture_that_may_not_be_read_is_named(photos, monkeypatch):
    opened = known.open_regular

    def refuse(path):
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied")
        return opened(path)

    monkeypatch.setattr(known, "open_regular", refuse)
    with pytest.raises(DataError, match=r"/3.png: found nothing readable \(Permission denied\)"):
        load(photos)


def test_links_to_pictures_and_folders_are_followed_and_circles_are_not(photos, tmp_path):
    plain = load(photos)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "cat").symlink_to(photos / "cat")
    for name in ("dog", "emu"):
        (linked / name).mkdir()
        for path in (photos / name).iterdir():
            (linked / name / path.name).symlink_to(path)
    assert load(linked).digest == plain.digest
    (linked / "dog/back").symlink_to(linked / "dog")
    (linked / "emu/up").symlink_to(linked)
    found = find(linked)
    assert "links that lead back" in found.left_out


# ---- names

NAMES = ["ring-tailed cat", "Äpfel", "x\x1b[31m", "a\nb", "=1+1", "日本", "' or 1"]


def test_names_of_classes_are_kept_but_for_what_is_no_letter(tmp_path):
    for label, name in enumerate(sorted(NAMES)):
        for number in range(4):
            draw(tmp_path / "p" / name / f"{number}.png", 10 * label + number)
    data = load(tmp_path / "p")
    assert data.class_names == tuple(map(cleaned, sorted(NAMES))) and "a b" in data.class_names
    assert [number // 10 for number in numbers(data.train.images)] == data.train.labels.tolist()


def test_a_name_of_two_spellings_of_one_letter_is_one_class(tmp_path):
    for part, name in (("train", "\u00c4pfel"), ("test", "A\u0308pfel")):  # as Linux and as a Mac write it
        for kind in (name, "b"):
            for number in range(3):
                draw(tmp_path / "p" / part / kind / f"{number}.png", number)
    assert load(tmp_path / "p").class_names == ("b", "\u00c4pfel")
    draw(tmp_path / "p/train/A\u0308pfel/x.png", 1)
    with pytest.raises(DataError, match="two folders called"):
        load(tmp_path / "p")


def test_a_name_that_is_not_utf8_is_refused(photos):
    os.rename(os.fsencode(photos / "cat"), os.fsencode(photos) + b"/c\xe4t")
    with pytest.raises(DataError, match=r"a folder called 'c\\udce4t', which is not UTF-8"):
        load(photos)


def test_a_picture_whose_name_is_not_utf8_is_read(photos):
    os.rename(os.fsencode(photos / "cat/1.png"), os.fsencode(photos) + b"/cat/\xe4.png")
    assert sum(map(len, (load(photos).train, load(photos).validation, load(photos).test))) == 30


# ---- folders that are none


def only(folder: Path, *names: str) -> None:
    for path in [path for path in folder.rglob("*.png") if path.parent.name not in names]:
        path.unlink()
        if not list(path.parent.iterdir()):
            path.parent.rmdir()


def zipped(folder: Path) -> None:
    folder.rename(folder.with_name("x"))
    folder.write_bytes(b"PK\3\4")


def packed_once_more(folder: Path) -> None:
    folder.rename(folder.with_name("x"))
    folder.mkdir()
    folder.with_name("x").rename(folder / "inside")


def flat(folder: Path) -> None:
    for path in list(folder.rglob("*.png")):
        path.rename(folder / f"{path.parent.name}{path.name}")
    only(folder)
    for name in ("cat", "dog", "emu"):
        (folder / name).rmdir()


BAD = {
    "no folder": (lambda folder: folder.rename(folder.with_name("x")), "no such folder; .*data.dir=FOLDER"),
    "a file": (zipped, "nothing readable .Not a directory.*unpack it, and give the folder"),
    "a folder in the folder": (
        packed_once_more,
        "found 1 folders in it; .*give the folder inside it: .*/photos/inside",
    ),
    "pictures without classes": (flat, "found 0 folders in it; .*FOLDER/train/CLASS/"),
    "one class": (lambda folder: only(folder, "cat"), "found 1 folders in it; expected two or more"),
    "no class": (lambda folder: only(folder), "found 0 folders in it"),
    "an empty class": (lambda folder: (folder / "ape").mkdir(), "no picture .png, jpg, .*of class ape"),
    "test without train": (lambda folder: draw(folder / "test/cat/a.png", 1), "found test, but no train"),
    "two folders for one split": (lambda folder: [(folder / n).mkdir() for n in ("val", "Valid")], "Valid and val"),
}


@pytest.mark.parametrize(("spoil", "words"), BAD.values(), ids=BAD)
def test_a_bad_folder_is_refused_by_name_and_with_what_to_do(photos, spoil, words):
    spoil(photos)
    with pytest.raises(DataError, match=words) as error:
        load(photos)
    assert str(error.value).startswith(str(photos)) and "\n" not in str(error.value)


def test_no_folder_at_all_is_asked_for(tmp_path):
    with pytest.raises(SettingsError, match="data.dir=FOLDER"):
        load_dataset("folder")


def test_a_home_sign_is_expanded(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert load(Path("~/photos")).num_classes == 3


def test_a_disk_is_not_looked_through_for_hours(photos, monkeypatch):
    monkeypatch.setattr(folders, "MAX_ENTRIES", 20)
    with pytest.raises(DataError, match="more than 20 files and folders"):
        load(photos)


@pytest.mark.parametrize("setting", ["test_size", "validation_size"])
@pytest.mark.parametrize("share", [0.0, 1.0, 5, None, float("nan")])
def test_a_share_that_is_none_is_refused(photos, setting, share):
    with pytest.raises(SettingsError, match=f"data.{setting}: {share}; allowed"):
        load(photos, **{setting: share})


# ---- decoding side by side


def test_the_same_images_come_whichever_thread_is_done_first(photos, monkeypatch):
    before, real, chance, used = load(photos), pictures.decode, random.Random(1), set()

    def slow(data, where):
        used.add(threading.get_ident())
        time.sleep(chance.random() / 200)
        return real(data, where)

    monkeypatch.setattr(pictures, "decode", slow)
    monkeypatch.setattr(pictures, "processors", lambda: 8)
    assert load(photos).digest == before.digest and len(used) > 1


def test_pictures_are_given_in_order_by_number_and_decoded_only_a_little_ahead(photos, monkeypatch):
    monkeypatch.setattr(pictures, "processors", lambda: 2)
    monkeypatch.setattr(pictures, "PIXELS_AT_ONCE", 3 * 20)
    look, real, decoded = Look(), pictures.decode, []
    some = folder_pictures(find(photos), look, test_size=0.2, validation_size=0.2, split_seed=0, notes=Notes())
    assert some.image_shape == (4, 5, 1) and [len(part.labels) for part in some.splits.values()] == [18, 6, 6]
    monkeypatch.setattr(pictures, "decode", lambda data, where: decoded.append(where) or real(data, where))
    images = some.images("train", [1, 4, 5, 6, 7, 8, 9, 10])
    number, image = next(images)
    assert number == 1 and numbers([image])[0] // 10 == some.splits["train"].labels[1]
    assert len(decoded) <= 4, "three are held at most, and the next one waits"
    images.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]
    assert [number for number, _ in some.images("train", [1, 4])] == [1, 4]
    assert [number for number, _ in some.images("train", [])] == []


def test_progress_is_told_of_every_picture(photos):
    told = []
    load(photos, progress=lambda wanted: (told.append(number) or number for number in wanted))
    assert len(told) == 60, "each header, and each picture"


# ---- the same as pack


@pytest.mark.parametrize("layout", ["CLASS", "train/CLASS", "splits"])
def test_a_folder_and_what_pack_makes_of_it_are_the_same_data(photos, tmp_path, layout):
    settings = {}
    if layout != "CLASS":
        (tmp_path / "all").mkdir()
        photos.rename(tmp_path / "all/train")
        photos = tmp_path / "all"
    if layout == "splits":
        for part, name in product(("val", "test"), ("cat", "dog")):
            draw(photos / part / name / "x.png", 99 if part == "val" else 98)
    else:
        settings = {"validation_size": 0.3}
    pack(photos, tmp_path / "a.npz", LOOK._replace(size="6x6", fit="pad"), **settings)
    data = load(photos, size="6x6", fit="pad", **settings)
    assert load_dataset("npz", path=str(tmp_path / "a.npz")).digest == data.digest


# ---- runs


def test_a_run_finds_its_folder_again_says_which_is_missing_and_takes_another_place(bestrun, home, photos, tmp_path):
    words = ("training.max_steps=4", "training.evaluate_every_steps=2", "training.patience_steps=4", "pictures=false")
    words = (*words, "training.batch_size=8", "data.test_size=0.3", "tracking.log_model=none")
    draw(photos / "cat/damaged.png", 1).write_bytes(b"")
    (photos / "cat/.DS_Store").write_bytes(b"")
    refused = bestrun("train", "data=folder", f"data.dir={photos}", *words, "name=a")
    assert refused.code == 3 and "cat/damaged.png: found an empty file" in refused.err
    assert "data.damaged=skip" in refused.err
    assert not (home / "mlruns/runs").exists() or not list((home / "mlruns/runs").iterdir())
    trained = bestrun("train", "data=folder", f"data.dir={photos}", *words, "data.damaged=skip", "name=a")
    assert trained.code == 0 and "left out 1 hidden files" in trained.out, trained.err
    moved = photos.rename(tmp_path / "other, place")
    for line in (("restore", "a", "--local"), ("resume", "a", "training.max_steps=6"), ("rerun", "a")):
        missing = bestrun(*line)
        assert missing.code == 3 and f"{photos}: found no such folder" in missing.err
        assert "say where it is now: data.dir=FOLDER" in missing.err
    there = f'data.dir="{moved}"'
    restored = bestrun("restore", "a", "--local", there)
    assert restored.code == 0 and "as logged" in restored.out, restored.err
    resumed = bestrun("resume", "a", there, "training.max_steps=6")
    assert resumed.code == 0, resumed.err
    assert bestrun("restore", "a", "--local").code == 0, "where it was resumed from is where it is now"
    (moved / "dog/1.png").unlink()
    other = bestrun("restore", "a", "--local")
    assert other.code == 3 and "not the data that run a was trained with: train " in other.err
