import torch

from models.networks.transformer import ShortConvolution, TransformerBlock


def test_the_short_convolution_begins_as_nothing_and_mixes_the_two_events_before() -> None:
    convolution = ShortConvolution(2)
    x = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]])
    torch.testing.assert_close(convolution(x), x)
    with torch.no_grad():
        # Of the event itself half as much again; of the one before it, and the one before that, by number.
        convolution.weight.copy_(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 0.1]]))
    expected = torch.tensor([[[1.5, 15.0], [2 * 1.5 + 1.0, 30.0], [4 * 1.5 + 2.0, 60.0 + 1.0]]])
    torch.testing.assert_close(convolution(x), expected)


def test_one_place_of_a_window_is_computed_as_among_all() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, 0.0).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    x, bias, only = torch.randn(3, 5, 8), torch.randn(2, 5, 5), torch.tensor([4, 0, 2])
    every = block(x, bias)
    one = block(x, bias[:, only].transpose(0, 1)[:, :, None, :], only)
    assert one.shape == (3, 1, 8)
    torch.testing.assert_close(one[:, 0], every[torch.arange(3), only], atol=1e-5, rtol=0)


def test_a_closed_gate_lets_nothing_of_the_attention_through() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(4, 1, 0.0).eval()
    x, bias = torch.randn(1, 3, 4), torch.zeros(1, 3, 3)
    with torch.no_grad():
        block.narrow.weight.zero_()
        block.output.weight.normal_()
        open_ = block(x, bias)
        # The norm makes each event's numbers sum to 0, and its bias is 1: the gate's input is minus 1,000 x 4.
        block.attention_norm.weight.zero_()
        block.attention_norm.bias.fill_(1.0)
        block.gate.weight.fill_(-1_000.0)
        closed = block(x, bias)
    assert (open_ - x).abs().max() > 0.01
    torch.testing.assert_close(closed, x)
