"""Whose words are the instruction, and which text encoders are taken."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import secateur as sc
from secateur.integrations.attach import attach
from secateur.integrations.text import Guidance, TextEncoder, load_text_encoder
from secateur.integrations.turns import PUT_IN, Turns, squeezed

VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\\n' + message['content'][0]['text'] + '\\n<</SYS>>\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}{# Render all text next #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'][0]['text'] + '</s> '}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
OLDER_MISTRAL = MISTRAL.replace("</s> ", "<\\\\s> ")
ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN25 = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}"
    "Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{%- set pictures = namespace(image=0, video=0) %}"
    "{%- macro said(content) %}{%- if content is string %}{{- content }}{%- else %}"
    "{%- for item in content %}{%- if item.type == 'image' or 'image' in item %}"
    "{%- set pictures.image = pictures.image + 1 %}"
    "{%- if add_vision_id %}{{- 'Picture ' ~ pictures.image ~ ': ' }}{%- endif %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif item.type == 'video' or 'video' in item %}"
    "{%- set pictures.video = pictures.video + 1 %}"
    "{%- if add_vision_id %}{{- 'Video ' ~ pictures.video ~ ': ' }}{%- endif %}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' }}{%- elif 'text' in item %}"
    "{{- item.text }}{%- endif %}{%- endfor %}{%- endif %}{%- endmacro %}"
    "{%- if tools %}{{- '<|im_start|>system\\n' }}"
    "{%- if messages[0].role == 'system' %}{{- said(messages[0].content) + '\\n\\n' }}{%- endif %}"
    "{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n' }}"
    "{{- '<tools>' }}"
    "{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\\n</tools><|im_end|>\\n' }}{%- elif messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\\n' + said(messages[0].content) + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + said(message.content) + '<|im_end|>\\n' }}"
    "{%- elif message.role == 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + said(message.content) }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- elif message.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}"
    "{%- endif %}{{- '\\n<tool_response>\\n' + said(message.content) + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}"
    "{%- endif %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TEMPLATES = {
    "llava-1.5": VICUNA,
    "llava-next": MISTRAL,
    "llava-next, older": OLDER_MISTRAL,
    "smolvlm": SMOLVLM,
    "llava-onevision": ONEVISION,
    "qwen2.5-vl": QWEN25,
    "qwen3-vl": QWEN3,
}
MARKS = [
    *("<pad>", "<s>", "</s>", "<image>", "<video>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "<end_of_utterance>",
]
CORPUS = [
    "user: USER: ASSISTANT: system assistant [INST] [/INST] You are a helpful assistant.",
    "What color is the dog? How many cats are there? Describe the picture. <0.3 seconds>",
] * 4


def tokenizer_of(name):
    """Byte-level as Qwen's, or of pieces with bytes for what it does not know as Llama's."""
    llama = name.startswith(("llava-1.5", "llava-next"))
    how = {"vocab_size": 420, "special_tokens": MARKS, "show_progress": False}
    if llama:
        core = Tokenizer(models.BPE(byte_fallback=True))
        core.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        how["special_tokens"] = [*MARKS, *(f"<0x{n:02X}>" for n in range(256))]
    else:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        how["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(**how))
    state = core
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=state, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.add_special_tokens({"additional_special_tokens": MARKS[3:]})
    made.chat_template = TEMPLATES[name]
    return made


@pytest.fixture(scope="module", params=list(TEMPLATES))
def reader(request):
    """Guidance with the template of a model, and its tokenizer."""
    tokenizer = tokenizer_of(request.param)
    config = transformers.PretrainedConfig()
    model = SimpleNamespace(config=config, generation_config=config)
    marks = frozenset(tokenizer.convert_tokens_to_ids(MARKS))
    family = SimpleNamespace(structure_tokens=lambda _: marks)
    return request.param, tokenizer, Guidance(model, family, tokenizer, None, None)


def instruction(reader, messages, start=True, more="", **how):
    """What is found in a conversation whose images and videos are three tokens each."""
    _, tokenizer, guidance = reader
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=start, **how
    )
    for mark in ("<image>", "<|image_pad|>", "<|video_pad|>"):
        text = text.replace(mark, mark * 3)
    ids = np.array([tokenizer(text + more)["input_ids"]])
    pads = tokenizer.convert_tokens_to_ids(["<image>", "<|image_pad|>", "<|video_pad|>"])
    found = guidance.find(ids, np.ones(ids.shape, dtype=bool), np.isin(ids, pads))
    return tokenizer.decode(ids[found]).strip()


def turn(role, text, images=0):
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return {"role": role, "content": content}


SYSTEM = turn("system", "You show a picture of cats and describe what the user asks: be brief.")
QUESTIONS = [
    "What color is the dog?",
    "狗是什么颜色的",
    "Какого цвета собака?",
    "ما لون الكلب؟",
    "犬は何色ですか 🐕",
    "a",
    "Compare:\n1. left\n\n2. right",
]


@pytest.mark.parametrize("words", QUESTIONS)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_the_words_of_a_single_turn(reader, words, images):
    assert instruction(reader, [turn("user", words, images)]) == words
    assert instruction(reader, [turn("user", words, images)], start=False) == words


@pytest.mark.parametrize("words", QUESTIONS)
def test_a_system_prompt_of_ones_own_is_not_the_users(reader, words):
    assert instruction(reader, [SYSTEM, turn("user", words, 1)]) == words


@pytest.mark.parametrize("system", [[], [SYSTEM]])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("words", QUESTIONS)
def test_the_last_turn_of_a_conversation(reader, system, first, last, words):
    told = [
        *system,
        turn("user", "How many cats are there?", first),
        turn("assistant", "There are two cats. What color is the dog?"),
        turn("user", words, last),
    ]
    assert instruction(reader, told) == words
    assert instruction(reader, told, more=" The dog") == words
    more = [*told, turn("assistant", "Red."), turn("user", "And the cat?")]
    assert instruction(reader, more) == "And the cat?"


def test_where_the_last_turn_says_nothing_the_one_before_counts(reader):
    told = [
        turn("user", "Describe what I send.", 0),
        turn("assistant", "Send it."),
        {"role": "user", "content": [{"type": "image"}]},
    ]
    assert instruction(reader, told) == "Describe what I send."


def test_words_around_an_image_are_all_the_users(reader):
    if not reader[0].startswith("qwen"):
        pytest.skip("this template puts images first")
    content = [
        {"type": "text", "text": "Look at this:"},
        {"type": "image"},
        {"type": "text", "text": "What color is it?"},
    ]
    found = instruction(reader, [SYSTEM, {"role": "user", "content": content}])
    assert found == "Look at this:What color is it?"


def test_tools_are_not_the_user(reader):
    if reader[0] != "qwen3-vl":
        pytest.skip("this template knows no tools")
    tools = [{"type": "function", "function": {"name": "zoom", "description": "Look closer."}}]
    told = [SYSTEM, turn("user", "What color is the dog?", 1)]
    assert instruction(reader, told, tools=tools) == "What color is the dog?"
    told += [turn("assistant", "zoom"), turn("tool", "a dog of 30 pixels", 1), turn("tool", "red")]
    assert instruction(reader, told, tools=tools) == "What color is the dog?"
    calls = [{"type": "function", "function": {"name": "zoom", "arguments": {"user": "dog"}}}]
    told += [{**turn("assistant", "Closer."), "tool_calls": calls}, turn("tool", "a dog")]
    assert instruction(reader, told, tools=tools) == "What color is the dog?"
    told += [turn("assistant", "Red."), turn("user", "Сколько там кошек?", 1)]
    assert instruction(reader, told, tools=tools) == "Сколько там кошек?"
    told += [{**turn("assistant", ""), "tool_calls": calls}, turn("tool", "two cats")]
    assert instruction(reader, told, tools=tools) == "Сколько там кошек?"


def test_the_numbers_of_pictures_are_not_the_users(reader):
    if not reader[0].startswith("qwen"):
        pytest.skip("this template does not count pictures")
    content = [{"type": "image"}, {"type": "video"}, {"type": "image"}]
    content.append({"type": "text", "text": "What is new in Picture 2: a dog?"})
    told = [turn("user", "Hello.", 1), turn("assistant", "Hello."), turn("user", "")]
    told[-1]["content"] = content
    found = instruction(reader, told, add_vision_id=True)
    assert found == "What is new in Picture 2: a dog?"


def test_the_times_of_a_videos_frames_are_not_the_users(reader):
    if reader[0] != "qwen3-vl":
        pytest.skip("this template's processor writes no times")
    frame = "<|vision_start|><|video_pad|><|vision_end|>"
    words = f"<0.3 seconds>{frame}<12.0 seconds>{frame}What is at <0.3 seconds>?"
    assert instruction(reader, [turn("user", words)]) == "What is at <0.3 seconds>?"


def test_the_marks_of_tiles_are_not_the_users(reader):
    if reader[0] != "smolvlm":
        pytest.skip("this template's processor cuts no tiles")
    _, tokenizer, guidance = reader
    tiles = "".join(f"<fake_token_around_image><row_1_col_{n}><image><image>" for n in (1, 2))
    tiles += "\n\n<fake_token_around_image><global-img><image><image><fake_token_around_image>"
    text = tokenizer.apply_chat_template([turn("user", "What color?", 1)], tokenize=False)
    ids = np.array([tokenizer(text.replace("<image>", tiles))["input_ids"]])
    places = np.flatnonzero(ids[0] == tokenizer.convert_tokens_to_ids("<image>"))
    hidden = np.zeros(ids.shape, dtype=bool)
    hidden[0, places[0] : places[-1] + 1] = True  # as the reader of prompts has it
    found = guidance.find(ids, np.ones(ids.shape, dtype=bool), hidden)
    assert tokenizer.decode(ids[found]).strip() == "What color?"


def test_without_its_marks_a_prompt_begins_with_a_system_prompt(reader):
    _, tokenizer, guidance = reader
    mark = "<|image_pad|>"
    ids = np.array([tokenizer(f"Be brief. {mark}{mark} What color?")["input_ids"]])
    visual = ids == tokenizer.convert_tokens_to_ids(mark)
    found = guidance.find(ids, np.ones(ids.shape, dtype=bool), visual)
    assert tokenizer.decode(ids[found]).strip() == "What color?"


def test_marks_are_learned_from_the_template():
    found = {name: Turns.of(None, tokenizer_of(name)) for name in TEMPLATES}
    assert found["llava-1.5"] == Turns("USER:", "ASSISTANT:")
    assert found["llava-next"] == Turns("[INST]", "[/INST]")
    chat = Turns("<|im_start|>user", "<|im_end|>")
    assert found["llava-onevision"] == Turns(
        chat.opening, chat.closing, found["llava-onevision"].tool
    )
    assert found["qwen2.5-vl"].opening == found["qwen3-vl"].opening == chat.opening
    assert found["qwen2.5-vl"].closing == found["qwen3-vl"].closing == chat.closing
    assert found["qwen3-vl"].tool == "<|im_start|>user<tool_response>"
    assert Turns.of(None, None) is None
    assert squeezed(" a\n b") == "ab"


@pytest.fixture(scope="module")
def llava(cases):
    case = cases["llava"]()
    return case, case.model()


def test_an_instruction_goes_with_one_call(llava):
    """As at attaching, and gone with the call; the stock model hears nothing of it."""
    case, model = llava
    inputs, method = case.inputs(), sc.EADP(keep=5)
    greedy = {"max_new_tokens": 2, "do_sample": False}
    scores = {}
    for words in ("red dog ?", "how many tree"):
        with attach(model, method, case.processor(), instruction=words) as att:
            model.generate(**inputs, **greedy)
            scores[words] = att.last.scores[0]
    assert not np.allclose(*scores.values())
    with attach(model, method, case.processor()) as att:
        model.generate(**inputs, **greedy)
        own = att.last.scores[0]
        for words, expected in scores.items():
            model.generate(**inputs, **greedy, instruction=words)
            np.testing.assert_array_equal(att.last.scores[0], expected)
            model(**inputs, instruction=[words])
            np.testing.assert_array_equal(att.last.scores[0], expected)
            with att.asking("left"), att.asking(words):
                model(**inputs)
            np.testing.assert_array_equal(att.last.scores[0], expected)
            model.generate(**inputs, **greedy)
            np.testing.assert_array_equal(att.last.scores[0], own)
        with pytest.raises(ValueError, match="expected one for each of 1 prompts"):
            model.generate(**inputs, **greedy, instruction=["a", "b"])
        with pytest.raises(ValueError, match="instruction: expected a text, or one for each"):
            model.generate(**inputs, **greedy, instruction=3)
        model(**inputs)
        np.testing.assert_array_equal(att.last.scores[0], own)


SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
VISION = {**SHAPE, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8}
TEXT = {**SHAPE, "num_hidden_layers": 1, "vocab_size": 128, "max_position_embeddings": 8}


def pair(kind, folder, case, tower=None, **vision):
    """A pair of a seed of its own, its vision side a copy of a tower, and its tokenizer saved."""
    config = {"vision_config": {**VISION, **vision}, "text_config": TEXT}
    torch.manual_seed(3)
    made = {
        "clip": lambda: transformers.CLIPModel(transformers.CLIPConfig(**config)),
        "siglip": lambda: transformers.SiglipModel(transformers.SiglipConfig(**config)),
    }[kind]()
    if tower is not None:
        made.vision_model.load_state_dict(tower.state_dict())
    made.save_pretrained(folder)
    case.processor().tokenizer.save_pretrained(folder)
    return made


def test_a_text_encoder_is_loaded_by_its_own_class(llava, tmp_path):
    case, model = llava
    made = pair("clip", tmp_path / "clip", case, model.model.vision_tower)
    pair("siglip", tmp_path / "siglip", case)
    encoder, tokenizer = load_text_encoder(tmp_path / "clip")
    assert type(encoder) is transformers.CLIPModel
    assert not encoder.training
    assert type(load_text_encoder(str(tmp_path / "siglip"))[0]) is transformers.SiglipModel
    words = made.text_model.state_dict()
    assert all(torch.equal(x, words[name]) for name, x in encoder.text_model.state_dict().items())
    found = []
    for given in ((encoder, tokenizer), str(tmp_path / "clip"), tmp_path / "clip"):
        with attach(model, sc.EADP(keep=5), case.processor(), given) as att:
            model(**case.inputs())
        found.append(att.last.scores[0])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_checkpoint_without_a_text_tower_is_refused_with_the_names(llava, tmp_path):
    case, model = llava
    made = pair("clip", tmp_path, case, model.model.vision_tower)
    left = {k: v for k, v in made.state_dict().items() if not k.startswith("text_model")}
    made.save_pretrained(tmp_path, state_dict=left)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a CLIPModel: text_model\."):
        load_text_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a CLIPModel: text_model\."):
        attach(model, sc.EADP(keep=5), case.processor(), tmp_path)
    # The pair as from_pretrained fills it in, and where its file is gone: in trained towers norms
    # are not as they began.
    filled = transformers.CLIPModel.from_pretrained(tmp_path)
    given = (filled, case.processor().tokenizer)
    with pytest.raises(ValueError, match=r"weights of text_model were missing from .* are random"):
        attach(model, sc.EADP(keep=5), case.processor(), given)
    (tmp_path / "model.safetensors").unlink()
    with torch.no_grad():
        filled.vision_model.post_layernorm.weight.mul_(1.5)
    with pytest.raises(ValueError, match=r"weights of text_model were missing from .* are random"):
        attach(model, sc.EADP(keep=5), case.processor(), given)
    model.model.vision_tower.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a clip_vision_model"):
        load_text_encoder(tmp_path)


def test_another_tower_is_refused(llava, tmp_path):
    case, model = llava
    tower, processor, method = model.model.vision_tower, case.processor(), sc.EADP(keep=5)
    pair("siglip", tmp_path / "siglip", case)
    with pytest.raises(ValueError, match=r"is a siglip_vision_model .* tower a clip_vision_model"):
        attach(model, method, processor, tmp_path / "siglip")
    pair("clip", tmp_path / "clip", case)
    with pytest.raises(ValueError, match=r"shape of the model's tower but other weights \(embed"):
        attach(model, method, processor, tmp_path / "clip")
    pair("clip", tmp_path / "large", case, image_size=64)
    with pytest.raises(ValueError, match="image_size=64, the model's tower 32"):
        attach(model, method, processor, tmp_path / "large")
    # Towers are trained on beside the language model, and rounded: still the same tower.
    made = pair("clip", tmp_path / "tuned", case, tower)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.02 * weight.abs().mean() * torch.randn(weight.shape))
    made.half().save_pretrained(tmp_path / "tuned")
    encoder = TextEncoder(*load_text_encoder(tmp_path / "tuned"))
    encoder.check(tower, "LLaVA-1.5")


def test_times_behind_the_frames_of_a_video_are_nobodys_words():
    """GLM-4V's; the same numbers between images are the user's."""
    image = "<|begin_of_image|><|end_of_image|>"
    video = f"<|begin_of_video|>{image}0{image}1.5seconds<|end_of_video|>"
    found = [match.span() for match in PUT_IN.finditer(f"{image}7{image}{video}12{image}3{image}")]
    start = len(f"{image}7{image}<|begin_of_video|>{image}")
    assert found == [(start, start + 1), (start + 1 + len(image), start + 11 + len(image))]
