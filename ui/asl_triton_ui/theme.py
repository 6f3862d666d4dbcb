"""The page's colors and fonts as a Gradio theme. It uses only system fonts, so nothing is loaded from elsewhere."""

import gradio as gr
from gradio.themes.utils.colors import Color

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "Cascadia Mono", "Menlo", "Noto Sans Mono", "monospace")

# From lightest to darkest. Text and controls in 600 on 50 and in 300 on 950 have a contrast of at least 4.5 : 1.
TEAL = Color(
    "#f0f8f8", "#d9eeef", "#b3dcdf", "#82c4c9", "#4ea6ad", "#2f8a92",
    "#1f6f77", "#1b5960", "#18474d", "#153a3f", "#0b2427",
    name="teal",
)  # fmt: skip
GRAY = Color(
    "#fafaf9", "#f2f3f2", "#e2e5e5", "#cdd2d3", "#98a1a4", "#69747a",
    "#505a60", "#3a4348", "#262d31", "#1a2023", "#12171a",
    name="gray",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """Build the theme, light and dark; a browser uses the one its user prefers."""
    return gr.themes.Base(
        primary_hue=TEAL, secondary_hue=TEAL, neutral_hue=GRAY, font=FONT, font_mono=MONO, radius_size="lg"
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_900",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        border_color_primary="*neutral_300",
        border_color_primary_dark="*neutral_700",
        block_shadow="none",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
        input_border_color="*neutral_400",
        input_border_color_dark="*neutral_600",
        input_border_width="1px",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_300",
        button_primary_background_fill_hover_dark="*primary_200",
        button_primary_text_color="white",
        button_primary_text_color_dark="*primary_950",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        button_border_width="1px",
        button_secondary_text_color="*neutral_900",
        button_secondary_text_color_dark="*neutral_100",
        slider_color="*primary_600",
        slider_color_dark="*primary_300",
        color_accent="*primary_600",
        loader_color="*primary_600",
        loader_color_dark="*primary_300",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
    )
