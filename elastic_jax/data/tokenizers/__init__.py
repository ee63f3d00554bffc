"""How does text become token numbers, and how many bytes does each number stand for?"""

from elastic_jax.data.tokenizers.bpe import BpeTokenizer, train_bpe
from elastic_jax.data.tokenizers.folder import load_pretrained
from elastic_jax.data.tokenizers.pretrained import PretrainedTokenizer
from elastic_jax.data.tokenizers.protocol import EOS, PAD, SPECIALS, Tokenizer, portions
from elastic_jax.data.tokenizers.saved import load
from elastic_jax.data.tokenizers.words import WordTokenizer

__all__ = [
    "EOS",
    "PAD",
    "SPECIALS",
    "BpeTokenizer",
    "PretrainedTokenizer",
    "Tokenizer",
    "WordTokenizer",
    "load",
    "load_pretrained",
    "portions",
    "train_bpe",
]
