"""Which codec made some tokens."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class CodecInfo:
    """Which codec made some tokens; stands in every token cut and every checkpoint.

    Attributes:
      name: Hub name or folder it was loaded from; not compared, a folder may move.
      sampling_rate: Samples a second the codec works at.
      frame_rate: Frames a second.
      num_quantizers: Codes a frame.
      codebook_size: Codes are in [0, codebook_size).
      fingerprint: Short hash of the encoder's weights and the codebooks: equal fingerprints mean
        equal tokens for equal audio.
    """

    name: str
    sampling_rate: int
    frame_rate: float
    num_quantizers: int
    codebook_size: int
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, fit for JSON and for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CodecInfo":
        """Read what `to_dict` wrote.

        Raises:
          ValueError: A field is missing; the message names it.
        """
        missing = [field.name for field in fields(cls) if field.name not in data]
        if missing:
            raise ValueError(f"codec description lacks {', '.join(missing)}: got {dict(data)}")
        return cls(
            name=str(data["name"]),
            sampling_rate=int(data["sampling_rate"]),
            frame_rate=float(data["frame_rate"]),
            num_quantizers=int(data["num_quantizers"]),
            codebook_size=int(data["codebook_size"]),
            fingerprint=str(data["fingerprint"]),
        )

    def check_same(self, other: "CodecInfo", where: str) -> None:
        """Refuse tokens of another codec: they mean nothing to a model trained on these.

        Args:
          other: The codec met.
          where: Who met it, for the message.

        Raises:
          ValueError: Naming each field that differs.
        """
        differing = [
            f"{field.name} {getattr(self, field.name)!r} against {getattr(other, field.name)!r}"
            for field in fields(self)
            if field.name != "name" and getattr(self, field.name) != getattr(other, field.name)
        ]
        if differing:
            raise ValueError(
                f"{where}: codec {self.name!r} was expected, codec {other.name!r} came; they "
                f"differ in {'; '.join(differing)}. Tokens of one codec mean nothing to another: "
                "use the codec that the tokens were made with, or tokenise again with the other "
                "one into another folder (egs/atepp/prepare.sh --codec CODEC --output-dir FOLDER) "
                "and train on these tokens"
            )
