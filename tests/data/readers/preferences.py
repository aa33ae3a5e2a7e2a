"""Records of preference data in their common forms, what they become, and sources that read them."""

from __future__ import annotations

from jaxmm.data.documents import Text, Turn
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources

ASKED = {"role": "user", "content": "Q"}
GOOD, BAD = {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
RESULT = {"role": "tool", "content": "3"}
HUMAN = {"from": "human", "value": "Q"}
GPT_GOOD, GPT_BAD = {"from": "gpt", "value": "A"}, {"from": "gpt", "value": "B"}
MARKED = {"bbox": [[1, 2, 3, 4]]}
PAIR = {"prompt": "Q", "chosen": "A", "rejected": "B"}
LIKED = {"prompt": "Q", "completion": "A", "label": True}
SHAREGPT = {"formatting": "sharegpt", "ranking": True}
COLUMNS = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
ALPACA = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
# What every form of PAIR becomes, and of LIKED beside another record.
PROMPT = (Turn("user", (Text("Q"),), False),)
BETTER = (*PROMPT, Turn("assistant", (Text("A"),), True))
WORSE = (*PROMPT, Turn("assistant", (Text("B"),), True))


def pairs(folder, records, **options):
    return folder.source(records, preferences="pairs", **options)


def judged(folder, records, **options):
    return folder.source(records, preferences="judged", **options)


def described(folder, records, preferences: str, **entry):
    """A source with an entry in dataset_info.json."""
    folder.write("d.json", records)
    folder.write("dataset_info.json", {"d": {"file_name": "d.json", **entry}})
    return read_sources(folder.info, ["d"], Reading(preferences=preferences))[0]
