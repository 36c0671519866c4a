"""Images of the visualisation toolkits: VTK image data and MetaImage."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from headwater.errors import DataError

from headwater_porous_gan.tasks.formats.source import Mapped, Reading, Source, chosen_name, facts_of

__all__ = ["open_meta", "open_vti"]


def open_vti(path: Path, reading: Reading) -> Source:
    """VTK image data with appended raw data, as ParaView writes it uncompressed."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
    mark = head.find(b"<AppendedData")
    begin = head.find(b"_", head.find(b">", mark)) + 1 if mark >= 0 else 0
    if mark < 0 or b'encoding="raw"' not in head[mark:begin] or begin == 0:
        raise DataError(f"{path}: only appended raw data can be read; save it again with appended, raw, uncompressed")
    root = ElementTree.fromstring(head[:mark] + b"</VTKFile>")
    if root.get("compressor"):
        raise DataError(f"{path} is compressed; save it again without a compressor")
    image = root.find("ImageData")
    if image is None:
        raise DataError(f"{path} holds no ImageData")
    extent = [int(v) for v in image.get("WholeExtent", "").split()]
    arrays = {}
    for place, points in (("CellData", 0), ("PointData", 1)):
        for data in image.findall(f"Piece/{place}/DataArray"):
            counts = [extent[2 * i + 1] - extent[2 * i] + points for i in (2, 1, 0)]
            arrays[data.get("Name", "")] = (data, counts)
    data, counts = arrays[chosen_name(path, {k: v[1] for k, v in arrays.items()}, reading.dataset, ("phase",))]
    types = {"UInt8": "u1", "Int8": "i1", "UInt16": "u2", "Int16": "i2", "UInt32": "u4", "Int32": "i4", "UInt64": "u8",
             "Int64": "i8", "Float32": "f4", "Float64": "f8"}  # fmt: skip
    order = ">" if root.get("byte_order") == "BigEndian" else "<"
    kind = np.dtype(order + types[data.get("type", "")])
    length = 8 if root.get("header_type") == "UInt64" else 4
    offset = begin + int(data.get("offset", "0")) + length
    need = offset + math.prod(counts) * kind.itemsize
    if path.stat().st_size < need:
        raise DataError(f"{path} is truncated: {path.stat().st_size} bytes where {need} are needed")
    note = image.find("FieldData/DataArray[@Name='headwater']")
    facts = facts_of("".join(chr(int(v)) for v in (note.text or "").split()).rstrip("\0")) if note is not None else {}
    return Source(path, Mapped(path, kind, counts, offset), None, facts)


def open_meta(path: Path, reading: Reading) -> Source:
    """MetaImage, data in the same file or beside it; its spacing has no unit and is not taken for metres."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while line := file.readline(1 << 20):
            name, equals, value = line.decode("latin-1").partition("=")
            if not equals:
                raise DataError(f"{path}: no MetaImage header: {line[:40]!r} has no '='")
            fields[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile":
                break
        offset = file.tell()
    missing = [name for name in ("DimSize", "ElementType", "ElementDataFile") if name not in fields]
    if missing:
        raise DataError(f"{path}: the header has no {missing[0]}")
    if fields.get("CompressedData", "False").lower() == "true":
        raise DataError(f"{path}: compressed MetaImage cannot be mapped; save it again uncompressed")
    types = {"MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "u2", "MET_SHORT": "i2", "MET_UINT": "u4",
             "MET_INT": "i4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"}  # fmt: skip
    if fields["ElementType"] not in types:
        raise DataError(f"{path}: ElementType {fields['ElementType']}; known: {', '.join(types)}")
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    kind = np.dtype((">" if big else "<") + types[fields["ElementType"]])
    shape = tuple(int(v) for v in reversed(fields["DimSize"].split()))
    where = path
    if fields["ElementDataFile"] != "LOCAL":
        where, offset = path.with_name(fields["ElementDataFile"]), int(fields.get("HeaderSize", "0"))
        if not where.exists():
            raise DataError(f"{path}: its data file {where.name} is not there")
    need = offset + math.prod(shape) * kind.itemsize
    if where.stat().st_size < need:
        raise DataError(f"{where} is truncated: {where.stat().st_size} bytes where {need} are needed")
    return Source(path, Mapped(where, kind, shape, offset), None, facts_of(fields.get("Comment")))
