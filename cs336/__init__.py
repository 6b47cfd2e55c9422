"""Train language models from scratch: crawl, filter, deduplicate, tokenize, pretrain, align, evaluate."""
