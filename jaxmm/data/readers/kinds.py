"""The kinds of media that records hold: what each is called, how its files are named, and how its content begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxmm.data.documents import (
    AUDIO_PLACEHOLDER,
    PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    Audio,
    AudioFeatures,
    Features,
    Image,
    Tokens,
    Video,
    VideoFeatures,
)

# Pictures in containers that films use too: AVIF and HEIC begin as an MP4 does.
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
_SOUND_BRANDS = (b"M4A ", b"M4B ")


def _is_picture(head: bytes) -> bool:
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    known = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
    return head.startswith(known) or is_webp or head[4:12] == b"ftypavif"


def _is_film(head: bytes) -> bool:
    is_mp4 = head[4:8] == b"ftyp" and head[8:12] not in (*_PICTURE_BRANDS, *_SOUND_BRANDS)
    is_avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    return is_mp4 or is_avi or head.startswith((b"\x1a\x45\xdf\xa3", b"FLV\1"))


def _is_sound(head: bytes) -> bool:
    is_wav = head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE"
    is_aiff = head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")
    is_m4a = head[4:8] == b"ftyp" and head[8:12] in _SOUND_BRANDS
    return is_wav or is_aiff or is_m4a or head.startswith((b"ID3", b"OggS", b"fLaC"))


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of media. In a list of pieces (``parts.Content``) it is the place of the record's next one.

    Attributes:
      name: its name among a format's columns, in ``config.data.columns``, and as the type of a part.
      many: the column of several; a format's attribute of this name has the columns that may hold them.
      noun, article: for people.
      placeholder: what stands for one in a text, unless the config says something else.
      parts: classes of its parts in a document.
      suffixes: of its files, including those that cannot be decoded: these are reported, not passed over.
      names: of columns that hold it, without case and punctuation, whatever their values look like.
      general: names that hold it only if the value looks like it: other data uses them for other things.
      base64: how base64 of its content begins. A path may begin so too, but it has a dot or is short.
      begins: whether the first 12 bytes of a content are of this kind.
    """

    name: str
    many: str
    noun: str
    article: str
    placeholder: str
    parts: tuple[type, ...]
    suffixes: tuple[str, ...]
    names: tuple[str, ...]
    general: tuple[str, ...]
    base64: tuple[str, ...]
    begins: Callable[[bytes], bool]

    def __str__(self) -> str:
        return self.name


_ANY = (
    "filenames", "filename", "filepaths", "filepath", "files", "file", "paths", "path", "localpath", "mediapaths",
    "mediapath", "media",
)  # fmt: skip

IMAGE = Kind(
    "image", "images", "picture", "an image", PLACEHOLDER, (Image, Features, Tokens),
    suffixes=(
        "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "ppm", "pgm", "pbm",
        "pnm", "heic", "heif", "jxl", "jp2", "svg", "tga",
    ),
    names=(
        "images", "image", "imgs", "img", "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif",
        "imagepaths", "imagepath", "imgpaths", "imgpath", "imagefiles", "imagefile", "imgfiles", "imgfile",
        "imageurls", "imageurl", "imgurls", "imgurl", "imagelist", "imglist", "imagebytes", "imgbytes",
        "imagebase64", "imgbase64", "imagedata", "imagefilenames", "imagefilename", "imagenames", "imagename",
    ),
    general=("pictures", "picture", "photos", "photo", "pics", "pic", *_ANY),
    # JPEG, PNG, GIF, WebP, BMP and TIFF
    base64=("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A"),
    begins=_is_picture,
)  # fmt: skip
# A GIF is a picture, and .ts and .mts are programs more often than films.
VIDEO = Kind(
    "video", "videos", "video", "a video", VIDEO_PLACEHOLDER, (Video, VideoFeatures),
    suffixes=("mp4", "m4v", "mkv", "webm", "avi", "mov", "mpg", "mpeg", "wmv", "flv", "3gp", "ogv"),
    names=(
        "videos", "video", "mp4", "mkv", "webm", "avi", "mov", "videopaths", "videopath", "videofiles", "videofile",
        "videobytes", "videobase64", "videodata",
    ),
    general=(
        "videourls", "videourl", "videofilenames", "videofilename", "videonames", "videoname", "videolist",
        "clips", "clip", "clippaths", "clippath", "films", "film", "movies", "movie", *_ANY,
    ),
    base64=("AAAA", "GkXfo", "UklGR", "RkxW"),
    begins=_is_film,
)  # fmt: skip
AUDIO = Kind(
    "audio", "audios", "recording", "a recording", AUDIO_PLACEHOLDER, (Audio, AudioFeatures),
    suffixes=("wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "wma", "aif", "aiff", "aifc", "amr"),
    names=(
        "audios", "audio", "wav", "flac", "mp3", "ogg", "opus", "m4a", "audiopaths", "audiopath", "audiofiles",
        "audiofile", "wavpaths", "wavpath", "wavfile", "audiobytes", "audiobase64", "audiodata",
    ),
    general=(
        "audiourls", "audiourl", "audiofilenames", "audiofilename", "audionames", "audioname", "audiolist",
        "clips", "clip", "clippaths", "clippath", "recordings", "recording", "sounds", "sound", "speech", "voice",
        *_ANY,
    ),
    base64=("SUQz", "T2dnUw", "ZkxhQw", "UklGR", "UkY2N", "Rk9STQ", "AAAA"),
    begins=_is_sound,
)  # fmt: skip
# In this order media without a placeholder stand in front of a turn.
KINDS = (IMAGE, VIDEO, AUDIO)
CLIPS = (VIDEO, AUDIO)


def of_part(part: object) -> Kind | None:
    """Returns the kind of a part of a document; None for text."""
    return next((kind for kind in KINDS if isinstance(part, kind.parts)), None)


def is_vectors(path: str, data: bytes) -> bool:
    """Whether a file holds feature vectors, by the end of its path or by how it begins."""
    name = path.partition("?")[0].partition("#")[0] if "://" in path else path
    return name.rstrip().lower().endswith(".npy") or data.startswith(b"\x93NUMPY")


_OF_SUFFIX = {suffix: kind for kind in KINDS for suffix in kind.suffixes}


def of_name(name: str) -> Kind | None:
    """Returns the kind that a path or URL ends like."""
    if "://" in name:
        name = name.partition("?")[0].partition("#")[0]
    stem, dot, ending = name.rstrip().rpartition(".")
    return _OF_SUFFIX.get(ending.lower()) if dot and stem else None
