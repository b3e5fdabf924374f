"""Exemplars in files: .npz, and .h5 where h5py is installed. Nothing is ever unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from icl_fast.arguments import whole_number
from icl_fast.data.exemplars import Exemplars
from icl_fast.data.input_files import printable
from icl_fast.errors import InputError
from icl_fast.files import atomic_write, regular_file
from icl_fast.memory import check_fits

Arrays = dict[str, NDArray[Any]]


def save_exemplars(path: str | Path, exemplars: Exemplars) -> None:
    """Write an .npz that `read_exemplars` reads; it appears whole or not at all.

    Raises:
        InputError: another suffix, a full disk, a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"{path}: exemplars are written as .npz; give it that suffix")
    arrays: Arrays = {"features": exemplars.features.cpu().numpy(), "base": exemplars.base.cpu().numpy()}
    if exemplars.names:
        arrays["names"] = np.array(exemplars.names)
    if exemplars.image is not None:
        arrays["image"] = np.array(exemplars.image)
    arrays["source"] = np.array(exemplars.source)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_exemplars(path: str | Path, *, exemplars: int | None = None) -> Exemplars:
    """Read `features` from an .npz or .h5 file.

    Either `features` is `[K,E,F]`, or `[K,E,height,width]` for images; or it is `[N,F]` with `labels` `[N]`, and
    the exemplars of a class are then the rows with its label, in order (classes in order of their labels). Without an
    array of that name, the file's only array of 3 or 4 dims is taken. Optional: `base` `[K]`, `names` `[K]`, `image`
    (height, width), `source`.

    Args:
        exemplars: how many of each class, the first ones; all by default, which must then be as many for each.

    Raises:
        InputError: no such file, damaged, nothing of that kind in it, values that are not finite, shapes that disagree,
            or h5py is missing.
    """
    path = Path(path)
    arrays = _arrays(path)
    name = _name(path, arrays, "features", (2, 3, 4) if "labels" in arrays else (3, 4))
    features = _floats(path, name, arrays[name])
    if 0 in features.shape:
        raise InputError(f"{path}: {name} {list(features.shape)} is empty")
    names: tuple[str, ...] = ()
    if "labels" in arrays:
        features, names = _by_label(path, features, arrays["labels"], exemplars)
    elif exemplars is not None:
        if not 1 <= whole_number("exemplars", exemplars) <= features.shape[1]:
            raise InputError(f"exemplars: {exemplars} of each class are not in {path}, {name} {list(features.shape)}")
        features = features[:, :exemplars]
    image: tuple[int, int] | None = None
    if features.ndim == 4:
        image = (features.shape[2], features.shape[3])
        features = features.reshape(*features.shape[:2], image[0] * image[1])
    elif "image" in arrays:
        if arrays["image"].shape != (2,) or arrays["image"].dtype.kind not in "iu":
            raise InputError(f"{path}: image must be two integers, height and width")
        image = (int(arrays["image"][0]), int(arrays["image"][1]))
    base = arrays.get("base", np.arange(len(features)))
    if base.dtype.kind not in "iu":
        raise InputError(f"{path}: base must be integers, is {base.dtype}")
    is_said = "source" in arrays and arrays["source"].ndim == 0
    source = _text(arrays["source"][()]) if is_said else printable(Path(path.name))
    if "names" in arrays:
        names = tuple(map(_text, arrays["names"].ravel()))
    try:
        return Exemplars(
            torch.from_numpy(np.ascontiguousarray(features)),
            torch.from_numpy(base.astype(np.int64)),
            names,
            image,
            source,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_array(path: str | Path, name: str) -> NDArray[np.float32]:
    """One matrix `[N,F]` of an .npz or .h5 file: the one called `name`, or the only one.

    Raises:
        InputError: as `read_exemplars`.
    """
    path = Path(path)
    arrays = _arrays(path)
    found = _name(path, arrays, name, (2,))
    return _floats(path, found, arrays[found])


def stack_classes(where: object, groups: Sequence[tuple[str, int]], exemplars: int | None) -> int:
    """How many exemplars to take of each class, from (name, how many it has) of all classes.

    Raises:
        InputError: fewer than 2 classes, fewer exemplars than asked for, or, if none is asked for, not equally many.
    """
    if len(groups) < 2:
        raise InputError(f"{where}: holds {len(groups)} classes, needs 2 or more")
    if exemplars is not None:
        exemplars = whole_number("exemplars", exemplars, 1)
    least, most = min(groups, key=lambda group: group[1]), max(groups, key=lambda group: group[1])
    if exemplars is None and least[1] != most[1]:
        raise InputError(
            f"{where}: class {least[0]} has {least[1]} exemplars and class {most[0]} has {most[1]}; "
            f"give exemplars={least[1]} to take as many of each"
        )
    if exemplars is not None and least[1] < exemplars:
        raise InputError(f"{where}: class {least[0]} has {least[1]} exemplars, fewer than exemplars={exemplars}")
    return least[1] if exemplars is None else exemplars


def _by_label(
    path: Path, features: NDArray[np.float32], labels: NDArray[Any], exemplars: int | None
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    if labels.shape != features.shape[:1]:
        raise InputError(f"{path}: labels are {list(labels.shape)}, features {list(features.shape)}; one label a row")
    if labels.dtype.kind not in "iuUS":
        raise InputError(f"{path}: labels must be integers or text, are {labels.dtype}")
    classes, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
    names = tuple(map(_text, classes))
    take = stack_classes(path, list(zip(names, map(int, counts), strict=True)), exemplars)
    order = np.argsort(number, kind="stable")
    rows = (np.cumsum(counts) - counts)[:, None] + np.arange(take)  # [K,E] places in `order`
    return features[order[rows]], names


def _arrays(path: Path) -> Arrays:
    regular_file(path, "path")
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _h5(path)
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path}: must be .npz or .h5")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            check_fits(3 * sum(member.file_size for member in members), str(path))  # as they are, and as float32
            arrays: Arrays = {}
            for member in members:
                with archive.open(member) as file:
                    arrays[member.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
                    if file.read(1):  # and at its end its checksum is compared
                        raise ValueError(f"{member.filename} is longer than its header says")
            return arrays
    except InputError:
        raise
    except Exception as error:  # zipfile, its codecs and numpy raise nearly everything for damaged files
        raise InputError(f"{path}: cannot be read, it is damaged or holds Python objects ({error})") from None


def _h5(path: Path) -> Arrays:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: needs h5py; pip install 'icl_fast[h5]', or save it as .npz") from None
    try:
        with h5py.File(path, "r") as file:
            # a link to another file may lead anywhere, to what never ends too
            own = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
            items = {name: file[name] for name in own if isinstance(file[name], h5py.Dataset)}
            items = {name: item for name, item in items.items() if not (item.external or item.is_virtual)}
            check_fits(3 * sum(item.size * item.dtype.itemsize for item in items.values() if item.size), str(path))
            # references and strings of variable length arrive as objects; text is decoded, the rest is not for us
            return {
                name: np.asarray(item.asstr()[()]).astype(str) if h5py.check_string_dtype(item.dtype) else item[()]
                for name, item in items.items()
                if item.shape is not None and (item.dtype.kind != "O" or h5py.check_string_dtype(item.dtype))
            }
    except InputError:
        raise
    except Exception as error:  # as above
        raise InputError(f"{path}: cannot be read, it is damaged or no HDF5 file ({error})") from None


def _name(path: Path, arrays: Arrays, name: str, dims: tuple[int, ...]) -> str:
    if name in arrays and np.ndim(arrays[name]) in dims:
        return name
    fitting = [other for other, array in arrays.items() if np.ndim(array) in dims and array.dtype.kind in "fiu"]
    if name not in arrays and len(fitting) == 1:
        return fitting[0]
    contents = ", ".join(f"{other} {list(np.shape(array))}" for other, array in arrays.items()) or "nothing"
    wanted = {(2,): "[N,F]", (3, 4): "[K,E,F], or [N,F] with labels [N]"}.get(dims, "[N,F] with labels [N]")
    raise InputError(f"{path}: needs an array {name} {wanted}; it holds {contents}")


def _floats(path: Path, name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: {name} must be numbers, is {array.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        values = array.astype(np.float32)
    if array.ndim != 4 or array.dtype.kind not in "iu":
        return values
    # unsigned images go from 0 to the largest number of their kind everywhere
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return values / np.float32(np.iinfo(array.dtype).max)
    if array.size and not 0 <= array.min() <= array.max() <= 1:
        raise InputError(f"{path}: {name} are images of {array.dtype}; give uint8, uint16, or numbers from 0 to 1")
    return values


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
