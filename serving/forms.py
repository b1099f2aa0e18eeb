"""A look at a request's form before BentoML parses it.

BentoML downloads the address that a client puts as text in a file field, parses other text as JSON without a bound, and
names a temporary file after the client's; any of these would be a way in, or an internal error (500) made by a client.
"""

import json
import re
from collections.abc import Collection

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

MAX_PARTS = 256
MAX_TEXT = 64 * 1024  # bytes of one text field
MAX_NAME = 128  # bytes of a file's name
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class FormError(ValueError):
    """What is wrong with the form, in words for the client."""


class FormWatch:
    """Feed it the body's chunks, then `finish`; both raise FormError.

    Args:
        content_type: the request's Content-Type.
        file_fields: fields that take files; text in one of them is refused.
    """

    def __init__(self, content_type: str, file_fields: Collection[str]) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary or len(boundary) > 200:
            raise FormError("the form has no boundary in its Content-Type; let your HTTP client set that header")
        self._file_fields = file_fields
        self._parts = 0
        self._complete = False
        self._begin()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise FormError("the form is damaged; send multipart/form-data as curl -F does") from error

    def finish(self) -> None:
        """The body is over."""
        if not self._complete:
            raise FormError("the form ends before its last boundary; send it again")

    def _begin(self) -> None:
        self._name, self._value, self._text = bytearray(), bytearray(), bytearray()
        self._disposition = b""
        self._field = ""
        self._is_file = False

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise FormError(f"the form has more than {MAX_PARTS} parts; send several requests")
        if b"name" not in options:
            raise FormError("a part of the form has no name")
        self._field = options[b"name"].decode("utf-8", "replace")
        self._is_file = b"filename" in options
        file_name = options.get(b"filename", b"").decode("utf-8", "replace")
        if len(file_name.encode()) > MAX_NAME or CONTROL.search(file_name):
            raise FormError(
                f"{self._field}: the file's name is longer than {MAX_NAME} bytes or holds control characters"
            )
        if not self._is_file and self._field in self._file_fields:
            raise FormError(f"{self._field}: takes a file, not text or an address; upload the file itself")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            return
        self._text += data[start:end]
        if len(self._text) > MAX_TEXT:
            raise FormError(f"{self._field}: longer than {MAX_TEXT // 1024} KiB of text")

    def _part_end(self) -> None:
        if self._is_file:
            return
        try:
            json.loads(self._text)
        except json.JSONDecodeError:
            pass  # plain words
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            if not isinstance(error, UnicodeDecodeError):
                raise FormError(f"{self._field}: neither words nor a number of a usual size") from error

    def _end(self) -> None:
        self._complete = True
