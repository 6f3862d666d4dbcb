"""The tab "Teach": a visitor shows a sign three times, and the page recognizes it from then on, without training."""

import asyncio
import base64
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import gradio as gr

from asl_triton.errors import AslTritonError, DictionaryError
from asl_triton.models.served import ServedModel
from asl_triton.results import Recognition
from asl_triton.signer.guide import AdviceFilter
from asl_triton.teaching.dictionary import MAX_NAME, SUFFIX, SignDictionary, check_gloss
from asl_triton.teaching.embedding import Embedding
from asl_triton.teaching.report import ADVISABLE_EXAMPLES, report_signs
from asl_triton.teaching.transport import KNOWN_FROM
from asl_triton_ui.filming_guide import build_filming_guide
from asl_triton_ui.guide import guide_recording
from asl_triton_ui.page_context import NOTHING, UNSEEN, PageContext, Updates
from asl_triton_ui.rendering import format_count, format_sentence, render, render_problem
from asl_triton_ui.state.request_queue import Ticket
from asl_triton_ui.state.server import on_background
from asl_triton_ui.state.taught_signs import OWN, Visitor, list_removable
from asl_triton_ui.upload_components import uploads_only
from asl_triton_ui.uploads import check_is_here

CORRECTIONS = 6  # buttons under an answer
THIS_WAS = "This was "
MAX_REPORTED = 1_000  # examples; a report on more takes seconds
SIGNS_SHOWN = 100
NO_CLIP = "record a clip of the sign or upload one first"
HINT = "Name a sign and record it three times."
ASK_HINT = "To try your signs, record or upload a clip and press “What is it?”. One press corrects a wrong answer."
USE_HINT = "Record or upload a clip of one of these signs, and press “What is it?”."


class TeachTab:
    """The tab's components and event handlers."""

    def __init__(self, context: PageContext) -> None:
        self._server, self._turns, self._taught = context.server, context.turns, context.taught
        self.signs = context.signs
        may_teach = self._taught.may_teach
        with gr.Row(elem_classes="two", elem_id="teach-tab"):
            with gr.Column(scale=5, min_width=300):
                name = gr.Textbox(
                    label="Name of the sign",
                    info="A gloss, such as coffee.",
                    max_length=MAX_NAME,
                    elem_id="teach-name",
                    visible=may_teach,
                )
                self.clip = uploads_only(
                    gr.Video(label="Clip", sources=["webcam", "upload"], elem_id="teach-clip", include_audio=True)
                )
                guide = gr.HTML("", elem_id="teach-clip-guide")
                picture = gr.Textbox(label="Camera picture", elem_id="teach-clip-frame", elem_classes="script-only")
                advice = gr.State(AdviceFilter())
                picture.change(guide_recording, [picture, advice], [guide, advice], concurrency_limit=2, **UNSEEN)
                with gr.Row(elem_classes="actions"):
                    add = gr.Button(
                        "Add as an example",
                        variant="primary",
                        size="lg",
                        elem_id="teach-add",
                        scale=2,
                        min_width=150,
                        visible=may_teach,
                    )
                    again = gr.Button("Take again", size="lg", elem_id="teach-again", scale=1, min_width=110)
                    ask = gr.Button("What is it?", size="lg", elem_id="teach-ask", scale=1, min_width=110)
                with_vocabulary = gr.Checkbox(
                    value=self._taught.with_vocabulary,
                    label="Consider the model's own signs too",
                    elem_id="teach-with-vocabulary",
                )
                build_filming_guide()
            with gr.Column(scale=6, min_width=300):
                self.said = gr.HTML(self._render_hint(), elem_id="teach-said")
                self.answer = gr.HTML(render("hint.html", hint=ASK_HINT), elem_id="teach-answer")
                with gr.Row(elem_id="teach-corrections"):
                    self.corrections = [
                        gr.Button("", size="sm", min_width=90, visible=False, elem_classes="teach-correction")
                        for _ in range(CORRECTIONS)
                    ]
                self.table = gr.HTML("", elem_id="teach-table")
                with gr.Row(elem_id="teach-file"):
                    self.download = gr.Button(
                        "Download signs",
                        size="sm",
                        min_width=140,
                        elem_id="teach-download",
                        interactive=False,
                        visible=may_teach,
                    )
                    load = uploads_only(
                        gr.UploadButton(
                            "Load signs",
                            size="sm",
                            min_width=110,
                            file_types=[SUFFIX],
                            elem_id="teach-load",
                            visible=may_teach,
                        )
                    )
                with gr.Row(elem_id="teach-remove-row"):
                    self.removable = gr.Dropdown(
                        [],
                        label="Sign or example to remove",
                        elem_id="teach-removable",
                        scale=3,
                        min_width=160,
                        visible=False,
                    )
                    self.remove_button = gr.Button(
                        "Remove", size="sm", elem_id="teach-remove", scale=1, min_width=90, visible=False
                    )
        file = gr.Textbox(label="File of signs", elem_id="teach-saved", elem_classes="script-only")
        self.outputs = [
            self.said,
            self.answer,
            self.clip,
            self.table,
            self.download,
            self.removable,
            self.remove_button,
            self.signs,
            *self.corrections,
        ]
        add.click(self.add, [name, self.clip, context.model], self.outputs, concurrency_limit=None, **UNSEEN)
        for button in self.corrections:
            corrected = [button, self.clip, context.model]
            button.click(self.correct, corrected, self.outputs, concurrency_limit=None, **UNSEEN)
        asked = [self.clip, context.model, with_vocabulary]
        ask.click(self.ask, asked, self.outputs, concurrency_limit=None, **UNSEEN)
        again.click(self.take_again, None, self.outputs, queue=False, **UNSEEN)
        self.clip.change(self.change_clip, None, self.outputs, queue=False, **UNSEEN)
        self.remove_button.click(self.remove, [self.removable], self.outputs, concurrency_limit=4, **UNSEEN)
        load.upload(self.load, [load, context.model], self.outputs, concurrency_limit=4, **UNSEEN)
        # The page's script makes the file, so the server does not write one.
        saving = self.download.click(self.save, None, [file], concurrency_limit=4, **UNSEEN)
        saving.then(None, [file], [file], js="(content) => window.aslTriton.saveSigns(content)", **UNSEEN)

    async def add(self, name: str, path: str | None, model: str | None, request: gr.Request) -> AsyncIterator[Updates]:
        """Add a clip as an example of a sign; yield progress, then how well the sign is recognized, or a problem."""
        yield {self.said: render("progress.html", what="Looking at the clip", detail="", share=None)}
        visitor = Visitor.of(request)
        try:
            gloss = check_gloss(name or "")
            embedding, served = await self._embed(path, model)
            add = partial(self._taught.add, visitor, gloss, embedding, served, self._server.address)
            await asyncio.to_thread(add)
            shown = await asyncio.to_thread(self._show_signs, visitor)
            said = await asyncio.to_thread(self._describe, visitor, gloss)
        except AslTritonError as exc:
            yield {self.said: render_problem(str(exc), "Not added.")}
            return
        if gloss in served.labels:
            said += f" The model has a gloss named {gloss}, too."
        yield {**shown, **self._show_no_answer(), self.clip: None, self.said: render("hint.html", hint=said)}

    async def correct(
        self, label: str, path: str | None, model: str | None, request: gr.Request
    ) -> AsyncIterator[Updates]:
        """Add the clip as an example of the sign named on the pressed button."""
        async for updates in self.add(label.removeprefix(THIS_WAS), path, model, request):
            yield updates

    async def ask(
        self, path: str | None, model: str | None, with_vocabulary: bool, request: gr.Request
    ) -> AsyncIterator[Updates]:
        """Recognize a clip by the taught signs; yield progress, then the answer and its corrections, or a problem."""
        progress = render("progress.html", what="Looking at the clip", detail="", share=None)
        yield {self.answer: progress, **self._show_corrections([])}
        try:
            clip = self._check_clip(path)
            dictionary = self._taught.get(Visitor.of(request))
            if dictionary is None or not len(dictionary):
                raise DictionaryError("no signs are taught yet: record one, or load your file")
            async with self._turns.wait_for_turn(Ticket()):
                recognizer = self._server.recognizer(model, dictionary, with_vocabulary=bool(with_vocabulary))
                recognition = await on_background(recognizer.recognize(clip, name=clip.name))
        except AslTritonError as exc:
            yield {self.answer: render_problem(str(exc), "Not recognized.")}
            await self._server.state(now=True)
            return
        answer = render("answer.html", recognition=recognition, threshold=KNOWN_FROM, prefix="teach-")
        yield {self.answer: answer, **self._show_corrections(self._list_corrections(recognition, dictionary))}

    def save(self, request: gr.Request) -> str:
        """Return the visitor's dictionary as a file in base64; empty if there is none or visitors may not teach."""
        dictionary = self._taught.get(Visitor.of(request))
        may_save = self._taught.may_teach and dictionary is not None
        return base64.b64encode(dictionary.to_bytes()).decode() if may_save and dictionary is not None else ""

    async def load(self, path: str | None, model: str | None, request: gr.Request) -> Updates:
        """Add the signs from a file."""
        if path is None:
            return NOTHING
        visitor = Visitor.of(request)
        try:
            await self._server.state(now=True)
            served = self._server.served(model)
            added = await asyncio.to_thread(self._taught.load, visitor, Path(path), served, self._server.address)
            shown = await asyncio.to_thread(self._show_signs, visitor)
        except AslTritonError as exc:
            return {self.said: render_problem(str(exc), "Not loaded.")}
        said = f"Loaded {format_count(added, 'example')}."
        return {**shown, self.said: render("hint.html", hint=said)}

    def remove(self, name: str | None, request: gr.Request) -> Updates:
        """Remove a sign, an example, or everything."""
        if not name:
            return {self.said: render_problem("choose a sign or an example first", "Nothing was removed.")}
        visitor = Visitor.of(request)
        try:
            what = self._taught.remove(visitor, name)
            said = render("hint.html", hint=f"Removed: {what}.")
        except AslTritonError as exc:
            said = render_problem(str(exc), "Nothing was removed.")
        return {**self._show_signs(visitor), **self._show_no_answer(), self.said: said}

    def show(self, request: gr.Request) -> Updates:
        """Show the taught signs."""
        return self._show_signs(Visitor.of(request))

    def take_again(self) -> Updates:
        """Discard the clip."""
        return {self.clip: None, **self._show_no_answer()}

    def change_clip(self) -> Updates:
        """Remove the answer to another clip."""
        return self._show_no_answer()

    async def _embed(self, path: str | None, model: str | None) -> tuple[Embedding, ServedModel]:
        """Wait for a turn and embed a clip. Returns the embedding and the model that made it.

        Raises:
            AslTritonError: there is no clip, it cannot be read, the server is away, or too many clips are waiting.
        """
        clip = self._check_clip(path)
        async with self._turns.wait_for_turn(Ticket()):
            embedding = await on_background(self._server.recognizer(model).embed(clip, name=clip.name))
        await self._server.state(now=True)  # the server may have been restarted with another checkpoint
        return embedding, self._server.served(model)

    def _check_clip(self, path: str | None) -> Path:
        if path is None:
            raise DictionaryError(NO_CLIP)
        check_is_here(Path(path), self._taught.keep_minutes)
        return Path(path)

    def _list_corrections(self, recognition: Recognition, dictionary: SignDictionary) -> list[str]:
        """List the signs that a clip may show, the likeliest first and taught ones before the model's own."""
        if not self._taught.may_teach:
            return []
        likely = [prediction.gloss for prediction in recognition.predictions]
        return sorted(likely, key=lambda gloss: gloss not in dictionary)[:CORRECTIONS]

    def _show_corrections(self, glosses: list[str]) -> Updates:
        """Show a button for each of these signs."""
        labels = [THIS_WAS + gloss for gloss in glosses] + [None] * (CORRECTIONS - len(glosses))
        return {
            button: gr.Button(visible=False) if label is None else gr.Button(label, visible=True)
            for button, label in zip(self.corrections, labels, strict=True)
        }

    def _show_no_answer(self) -> Updates:
        return {self.answer: render("hint.html", hint=ASK_HINT), **self._show_corrections([])}

    def _show_signs(self, visitor: Visitor) -> Updates:
        """Show the taught signs, how well each is recognized, and the controls for them."""
        dictionary = self._taught.get(visitor)
        has_signs = dictionary is not None and len(dictionary) > 0
        choices = list_removable(dictionary, with_everything=self._taught.path is None)
        may_remove = has_signs and self._taught.may_teach
        hidden = gr.Radio(value=OWN, visible=False)
        return {
            self.table: render_signs(dictionary, shared=self._taught.path is not None),
            self.download: gr.Button(interactive=has_signs),
            self.removable: gr.Dropdown(choices, value=None, visible=may_remove),
            self.remove_button: gr.Button(visible=may_remove),
            self.signs: gr.Radio(visible=True) if has_signs or self._taught.path is not None else hidden,
        }

    def _describe(self, visitor: Visitor, gloss: str) -> str:
        """Say how well a sign is recognized now that it has another example."""
        dictionary = self._taught.get(visitor)
        if dictionary is None or gloss not in dictionary:  # removed in the meantime
            return f"{gloss} was removed."
        count = sum(example.gloss == gloss for example in dictionary.examples)
        if count < ADVISABLE_EXAMPLES:
            return f"{gloss}: {count} of {ADVISABLE_EXAMPLES} examples. Record it again."
        advice = ""
        if len(dictionary.examples) <= MAX_REPORTED:
            advice = next(report.advice for report in report_signs(dictionary) if report.gloss == gloss)
        apart = "the model can tell it from the other signs" if len(dictionary) > 1 else "now teach another sign"
        return f"{gloss}: {format_count(count, 'example')}. {format_sentence(advice or apart)}"

    def _render_hint(self) -> str:
        return render("hint.html", hint=HINT if self._taught.may_teach else USE_HINT)


def render_signs(dictionary: SignDictionary | None, *, shared: bool) -> str:
    """Render the taught signs as a table. Beyond `MAX_REPORTED` examples, it omits how well each is recognized."""
    if dictionary is None or not len(dictionary):
        return render("taught.html", rows=[], more=0, shared=shared)
    if len(dictionary.examples) <= MAX_REPORTED:
        reports = report_signs(dictionary)
        rows = [
            {
                "gloss": report.gloss,
                "examples": report.examples,
                "apart": "" if report.recognized is None else f"{report.recognized} of {report.examples}",
                "is_apart": report.recognized == report.examples,
                "advice": format_sentence(report.advice) if report.advice else "",
            }
            for report in reports[:SIGNS_SHOWN]
        ]
    else:
        glosses = [example.gloss for example in dictionary.examples]
        rows = [
            {"gloss": gloss, "examples": glosses.count(gloss), "apart": "", "is_apart": False, "advice": ""}
            for gloss in dictionary.glosses[:SIGNS_SHOWN]
        ]
    return render("taught.html", rows=rows, more=len(dictionary) - len(rows), shared=shared)
