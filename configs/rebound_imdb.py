"""Rebound on real text: positive IMDb reviews, then negative ones (Figure 4 of arXiv 2406.06144, with its missing controls).

Pre-trains a 529k-parameter model on mixed reviews and prose, aligns it on positive reviews that it never saw, and perturbs it with
negative ones, three seeds. 24 minutes on 2 CPU cores (commit 8e0c3805c85b). Expect a score of 0.55 for base, 0.60, 0.64 and 0.66 after
256, 1,024 and 4,096 positives, 0.43 to 0.45 after 1,024 negatives; README.md has the intervals.

    python -m elastic_jax.run --config=configs/rebound_imdb.py --workdir=runs/imdb \\
        --config.data.prose=news.jsonl.gz --config.data.rows.prose=4000

Reads `imdb_reviews` through tensorflow-datasets; `--config.data.train=FILE --config.data.test=FILE` read local files instead.
"""

from elastic_jax import config


def get_config():
    c = config.default(config.text_data())
    c.name = "rebound_imdb"
    c.seeds = (0, 1, 2)
    c.data.train = "tfds:imdb_reviews"
    c.data.test = "tfds:imdb_reviews"
    c.data.seq_len = 128
    c.data.tokenizer.vocab_size = 2048
    c.data.rows.update(pretrain=6000, align=4096, perturb=1024, scorer=4800, heldout=128, prompts=192)
    c.model.size = "300k"
    c.pretrain.batch_size = 32
    c.pretrain.tokens = 5_000_000
    c.pretrain.optim.update(lr=3e-3, warmup=50)
    c.align.optim.lr = 5e-4
    c.align.volumes = (256, 1024, 4096)
    c.perturb.optim.lr = 5e-4
    c.perturb.volumes = (16, 64, 256, 1024)
    c.measures.samples = 192
    c.measures.sample_tokens = 64
    return c
