"""The bundled tokenizer: byte-level BPE with five special tokens and a chat template.

Byte-level, so any text encodes and decodes exactly; digits stand alone, so that times and sums are
read digit by digit. The merges are learned on text without special tokens, else merges such as
`.<` would take up ids that encoded text never holds.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, USER, ASSISTANT = SPECIALS = ("<pad>", "<s>", "</s>", "<u>", "<a>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\\n' %}"
    "{% elif m.role == 'user' %}<u>{{ ns.system }}{{ m.content }}{% set ns.system = '' %}"
    "{% elif m.role == 'assistant' %}<a>{{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('unknown role ' + m.role) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Learns the merges on `texts` and returns the tokenizer as transformers loads it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def merged_from(tokenizer: PreTrainedTokenizerFast) -> dict[int, tuple[int, int]]:
    """For each id that a merge made, the two ids it merged."""
    backend = tokenizer.backend_tokenizer
    merges = json.loads(backend.to_str())["model"]["merges"]
    ids = backend.get_vocab(with_added_tokens=False)
    return {ids[left + right]: (ids[left], ids[right]) for left, right in merges}


def printable_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids whose text is printable ASCII: the ones that tasks in English may need."""
    ids = []
    for token_id in range(len(SPECIALS), len(tokenizer)):
        text = str(tokenizer.decode([token_id]))
        if text.isascii() and (text.isprintable() or text.isspace()):
            ids.append(token_id)
    return ids
