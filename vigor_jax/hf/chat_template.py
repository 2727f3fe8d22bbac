"""Prompt templates in Jinja, the form in which transformers and servers read them."""

import json

from vigor_jax.data.text.conversation import Template

# Content is a text, or a list of texts and images as chat interfaces send it. One image goes first, as in training.
_MESSAGES = """\
{%- for message in messages -%}
    {%- set found = namespace(text='') -%}
    {%- if message['content'] is string -%}
        {%- set found.text = message['content'] -%}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- set found.text = found.text + (item['text'] if item['type'] == 'text' else IMAGE) -%}
        {%- endfor -%}
    {%- endif -%}
    {%- set num_images = found.text.split(IMAGE) | length - 1 -%}
    {%- if message['role'] == 'user' -%}
        QUESTION
    {%- elif message['role'] == 'assistant' -%}
        {{- ANSWER -}}
    {%- else -%}
        {{- raise_exception('only the roles user and assistant: the model was trained with one system prompt') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- HEADER -}}
{%- endif -%}
"""
_QUESTION = """\
{%- if num_images == 1 -%}
            {%- set found.text = (IMAGE + '\\n' + found.text.replace(IMAGE, '').strip()).strip() -%}
        {%- endif -%}
        {{- NAME + found.text -}}"""
_IMAGES_ALONE = """\
{%- if num_images == 0 -%}
            {{- raise_exception('the model was trained to describe images: give it one') -}}
        {%- endif -%}
        {{- IMAGE * num_images -}}"""


def chat_template(template: Template, *, eos_token: str, image_token: str = "<image>") -> str:
    """The template under which `apply_chat_template` writes what `encode_prompt` and `encode_example` encode.

    Args:
      template: conversation format.
      eos_token: ends an answer where the format has no other sign.
      image_token: stands for an image in the text.
    """
    end = json.dumps(eos_token if template.stop is None else template.stop)
    if template.is_caption_only:
        question, answer = _IMAGES_ALONE, f"found.text + {end}"
    else:
        question = _QUESTION.replace("NAME", json.dumps(template.question_header))
        answer = f"{json.dumps(template.answer_header + ' ')} + found.text + {end}"
    body = _MESSAGES.replace("QUESTION", question).replace("ANSWER", answer)
    body = body.replace("HEADER", json.dumps(template.answer_header)).replace("IMAGE", json.dumps(image_token))
    return f"{{{{- {json.dumps(template.system)} -}}}}\n{body}"
