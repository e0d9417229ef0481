import pytest
import torch

from projclust.coding.packing import bits_float, float_bits, pack_nibbles, pack_steps, unpack_nibbles


def test_nibbles_by_hand() -> None:
    assert pack_nibbles(torch.tensor([1, 2, 15])).tolist() == [0x12, 0xF0]
    assert unpack_nibbles(torch.tensor([0x12, 0xF0], dtype=torch.uint8), 3).tolist() == [1, 2, 15]
    assert pack_nibbles(torch.tensor([[1, 2], [3, 4]])).tolist() == [[0x12], [0x34]]
    assert pack_nibbles(torch.empty(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8])
def test_nibbles_come_back(count: int, device: torch.device) -> None:
    values = torch.randint(0, 16, (5, count), generator=torch.Generator().manual_seed(0)).to(device)
    packed = pack_nibbles(values)
    assert packed.shape == (5, (count + 1) // 2)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_nibbles(packed, count).long(), values)


def test_steps_by_hand(device: torch.device) -> None:
    # 101, 1, 11111111, and zeros to the end of the byte; the higher bits of a state are those of earlier steps.
    states = torch.tensor([[0b11111101, 0b11111011, 0xFF], [0b010, 0, 0x0F]], dtype=torch.uint8, device=device)
    assert pack_steps(states, [3, 1, 8]).tolist() == [[0b10111111, 0b11110000], [0b01000000, 0b11110000]]
    assert pack_steps(states[:, :2], [4, 4]).tolist() == [[0b11011011], [0b00100000]]
    assert pack_steps(states[:, :0], []).shape == (2, 0)
    assert pack_steps(states[:0], [3, 1, 8]).shape == (0, 2)


def test_floats_are_their_little_endian_bytes() -> None:
    assert float_bits(torch.tensor([1.0, -2.0]), torch.bfloat16).tolist() == [[0x80, 0x3F], [0x00, 0xC0]]
    assert float_bits(torch.tensor(1.0), torch.float16).tolist() == [0x00, 0x3C]
    values = torch.tensor([[0.1, -3.0], [0.0, 1e4]])
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(bits_float(float_bits(values, dtype), dtype), values.to(dtype).float())
