"""The one list of image formats for trainer and sidecar, and what a file is by its first bytes; needs no Pillow."""

# Raster formats that Pillow decodes without another program; PIL would hand EPS to Ghostscript. A file's content
# decides, its suffix only whether a folder lists it.
SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".mpo": "JPEG",
    ".apng": "PNG",
    ".avif": "AVIF",
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))

# What sidecars decode that do not say it yet.
FORMATS_BEFORE_AVIF = tuple(name for name in FORMATS if name != "AVIF")

# As many bytes tell the format.
HEAD = 64

_SIGNATURES = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    *(("TIFF", start) for start in (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")),
    # What people take for pictures that are accepted.
    ("EPS", b"%!PS"),
    ("EPS", b"\xc5\xd0\xd3\xc6"),
    ("PDF", b"%PDF"),
    ("Photoshop", b"8BPS"),
    ("JPEG 2000", b"\0\0\0\x0cjP  "),
    ("JPEG 2000", b"\xff\x4f\xff\x51"),
    ("JPEG XL", b"\xff\x0a"),
    ("JPEG XL", b"\0\0\0\x0cJXL "),
    ("DDS", b"DDS "),
    ("ICO", b"\0\0\x01\0"),
    ("ICNS", b"icns"),
    ("OpenEXR", b"\x76\x2f\x31\x01"),
    ("Radiance HDR", b"#?RADIANCE"),
    ("Netpbm", b"P4"),
    ("Netpbm", b"P5"),
    ("Netpbm", b"P6"),
    ("FITS", b"SIMPLE  ="),
    ("NumPy", b"\x93NUMPY"),
    ("HDF5", b"\x89HDF"),
    ("Parquet", b"PAR1"),
    ("ZIP", b"PK\x03\x04"),
    ("gzip", b"\x1f\x8b"),
    ("Git LFS pointer (fetch the file with git lfs pull)", b"version https://git-lfs"),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
# Sizes of BMP's header, which tell it from a text that begins with its two letters.
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_MARKUP = {b"<svg": "SVG", b"<!doctype html": "HTML", b"<html": "HTML", b"<?xml": "XML", b"{": "JSON"}


def sniff(head: bytes) -> str:
    """What a file is: one of `FORMATS`, else words for an error message; a guess, as no more than its start is read.

    Args:
      head: its first `HEAD` bytes, or all of a shorter one.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = [head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)]
        if any(brand in _AVIF_BRANDS for brand in brands):
            return "AVIF"
        return "HEIF" if any(brand in _HEIF_BRANDS for brand in brands) else "video"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    for name, start in _SIGNATURES:
        if head.startswith(start):
            return name
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, name in _MARKUP.items():
        if text.startswith(start):
            return name
    if not head.strip(b"\0"):
        return "nothing but zeros"
    is_text = all(byte in b"\t\n\r\f" or byte >= 32 for byte in head)
    return "text" if is_text and b"\x7f" not in head else "of no known format"
