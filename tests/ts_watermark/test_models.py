"""The frozen models: another vocabulary's tokens in the encoder's space."""

import pytest
import torch

from shared import bundled
from shared.sources import MissingInput
from ts_watermark import data, models


def test_a_token_is_the_mean_of_its_pieces(word_codec):
    """Words of a toy vocabulary, read by MiniLM: one piece, several, none."""
    encoder, tokenizer = bundled.minilm()
    words = encoder.get_input_embeddings().weight.detach()
    minilm = data.Codec(tokenizer)
    sim = models.mean_pieces(word_codec, minilm, words)
    assert sim.shape == (len(word_codec), words.shape[1])
    for i in (2, 40):
        pieces = minilm.encode(word_codec.decode([i]))
        torch.testing.assert_close(sim[i], words[pieces].mean(0))
    assert (sim[1] == 0).all()  # <s> has no text


@pytest.mark.slow
def test_smollm2_means_the_same_to_minilm(tmp_path):
    """A sentence read token by token lies near the same sentence read as text."""
    try:
        folder = models.named("smollm2", tmp_path)
    except MissingInput as error:
        pytest.skip(str(error))
    encoder, tokenizer = bundled.minilm()
    minilm, codec = data.Codec(tokenizer), data.load_codec(folder)
    words = encoder.get_input_embeddings().weight.detach()
    sim = models.mean_pieces(codec, minilm, words)
    text = "The committee will publish its report on the new railway line in the spring."
    mapped, read = (
        models.method.sentence_embedding(encoder, rows[None], "mean")
        for rows in (sim[codec.encode(text)], words[minilm.encode(text)])
    )
    assert torch.cosine_similarity(mapped, read).item() > 0.8
