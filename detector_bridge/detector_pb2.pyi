from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CODE_UNSPECIFIED: _ClassVar[ErrorCode]
    INVALID_IMAGE: _ClassVar[ErrorCode]
    IMAGE_TOO_LARGE: _ClassVar[ErrorCode]
    NO_PHRASES: _ClassVar[ErrorCode]
    TOO_MANY_PHRASES: _ClassVar[ErrorCode]
    EMPTY_PHRASE: _ClassVar[ErrorCode]
    PHRASE_TOO_LONG: _ClassVar[ErrorCode]
    INVALID_THRESHOLD: _ClassVar[ErrorCode]
    DEADLINE_EXCEEDED: _ClassVar[ErrorCode]
    INTERNAL: _ClassVar[ErrorCode]
ERROR_CODE_UNSPECIFIED: ErrorCode
INVALID_IMAGE: ErrorCode
IMAGE_TOO_LARGE: ErrorCode
NO_PHRASES: ErrorCode
TOO_MANY_PHRASES: ErrorCode
EMPTY_PHRASE: ErrorCode
PHRASE_TOO_LONG: ErrorCode
INVALID_THRESHOLD: ErrorCode
DEADLINE_EXCEEDED: ErrorCode
INTERNAL: ErrorCode

class DetectRequest(_message.Message):
    __slots__ = ("id", "image", "phrases", "box_threshold", "text_threshold", "timeout_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PHRASES_FIELD_NUMBER: _ClassVar[int]
    BOX_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TEXT_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    image: bytes
    phrases: _containers.RepeatedScalarFieldContainer[str]
    box_threshold: float
    text_threshold: float
    timeout_ms: int
    def __init__(self, id: _Optional[str] = ..., image: _Optional[bytes] = ..., phrases: _Optional[_Iterable[str]] = ..., box_threshold: _Optional[float] = ..., text_threshold: _Optional[float] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class DetectReply(_message.Message):
    __slots__ = ("id", "detections", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    detections: Detections
    error: Error
    def __init__(self, id: _Optional[str] = ..., detections: _Optional[_Union[Detections, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Detections(_message.Message):
    __slots__ = ("phrases", "width", "height")
    PHRASES_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    phrases: _containers.RepeatedCompositeFieldContainer[PhraseDetections]
    width: int
    height: int
    def __init__(self, phrases: _Optional[_Iterable[_Union[PhraseDetections, _Mapping]]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class PhraseDetections(_message.Message):
    __slots__ = ("phrase", "present", "score", "boxes", "unknown_words")
    PHRASE_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_WORDS_FIELD_NUMBER: _ClassVar[int]
    phrase: str
    present: bool
    score: float
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    unknown_words: _containers.RepeatedCompositeFieldContainer[UnknownWord]
    def __init__(self, phrase: _Optional[str] = ..., present: bool = ..., score: _Optional[float] = ..., boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ..., unknown_words: _Optional[_Iterable[_Union[UnknownWord, _Mapping]]] = ...) -> None: ...

class UnknownWord(_message.Message):
    __slots__ = ("word", "pieces")
    WORD_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    word: str
    pieces: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, word: _Optional[str] = ..., pieces: _Optional[_Iterable[str]] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x_min", "y_min", "x_max", "y_max", "score")
    X_MIN_FIELD_NUMBER: _ClassVar[int]
    Y_MIN_FIELD_NUMBER: _ClassVar[int]
    X_MAX_FIELD_NUMBER: _ClassVar[int]
    Y_MAX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    score: float
    def __init__(self, x_min: _Optional[float] = ..., y_min: _Optional[float] = ..., x_max: _Optional[float] = ..., y_max: _Optional[float] = ..., score: _Optional[float] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    message: str
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., message: _Optional[str] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("backend", "model", "digest", "devices", "dtype", "box_threshold", "text_threshold", "limits", "versions", "formats")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BOX_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TEXT_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    backend: str
    model: str
    digest: str
    devices: _containers.RepeatedScalarFieldContainer[str]
    dtype: str
    box_threshold: float
    text_threshold: float
    limits: Limits
    versions: _containers.ScalarMap[str, str]
    formats: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, backend: _Optional[str] = ..., model: _Optional[str] = ..., digest: _Optional[str] = ..., devices: _Optional[_Iterable[str]] = ..., dtype: _Optional[str] = ..., box_threshold: _Optional[float] = ..., text_threshold: _Optional[float] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., versions: _Optional[_Mapping[str, str]] = ..., formats: _Optional[_Iterable[str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("image_bytes", "pixels", "phrases", "tokens")
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    PHRASES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    image_bytes: int
    pixels: int
    phrases: int
    tokens: int
    def __init__(self, image_bytes: _Optional[int] = ..., pixels: _Optional[int] = ..., phrases: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...
