"""How preferences are stored. Reading is tolerant: unknown fields are skipped, every later field has a default."""

from __future__ import annotations

from msgspec import Raw, Struct

from shared.schemas.preferences import Preference

ABSENT = Raw(b"null")


class PreferenceRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A preference: two outputs of which one is preferred, or one output with a label."""

    id: str
    project: str
    created_at: int
    input: Raw
    """JSON as it was posted, like the outputs; null where there is none."""
    preferred_output: Raw = ABSENT
    non_preferred_output: Raw = ABSENT
    output: Raw = ABSENT
    label: bool | None = None
    source: str | None = None
    voter: str | None = None
    metadata: dict[str, str] | None = None

    @property
    def size_bytes(self) -> int:
        """How long its conversations are together."""
        return sum(map(len, map(bytes, (self.input, self.preferred_output, self.non_preferred_output, self.output))))

    def public(self) -> Preference:
        return Preference(
            id=self.id,
            created_at=self.created_at,
            input=self.input,
            preferred_output=self.preferred_output,
            non_preferred_output=self.non_preferred_output,
            output=self.output,
            label=self.label,
            source=self.source,
            voter=self.voter,
            metadata=self.metadata,
        )
