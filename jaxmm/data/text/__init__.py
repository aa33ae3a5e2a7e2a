"""From turns to token ids: chat templates and tokenizers."""
