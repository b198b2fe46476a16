"""``decoder_block``: what a block of a decoder does with up to 16 tokens of as many rows, in one launch."""

from parhelion.ops.decoder_block.contract import DecoderBlock
from parhelion.ops.gluon_provider import GluonProvider
from parhelion.ops.provider import ReferenceProvider
from parhelion.ops.registry import Op

OP = Op(
    DecoderBlock,
    (ReferenceProvider(), GluonProvider()),
    examples=(
        DecoderBlock(512, 1024, 4, 2, 128, 16, 4096, 128**-0.5, 1e-6),
        DecoderBlock(2048, 6144, 16, 8, 128, 16, 4096, 128**-0.5, 1e-6, 1e-6),
        DecoderBlock(4096, 12288, 32, 8, 128, 16, 4096, 128**-0.5, 1e-6, 1e-6),
    ),
)

__all__ = ["OP", "DecoderBlock"]
