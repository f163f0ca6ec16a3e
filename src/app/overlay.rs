//! What lies on top of the view: a stack, of which the top one hears the keys first.

use super::line_edit::LineEdit;
use crate::event::StepId;

/// Something drawn over the view.
#[derive(Clone, Debug, PartialEq)]
pub enum Overlay {
    /// All commands and their keys; typing narrows them down ([`super::App::help_rows`]).
    Help {
        /// What the rows must contain.
        query: LineEdit,
        /// First row shown.
        scroll: usize,
    },
    /// The parameter panel; its rows are in [`super::App::params`].
    Params,
    /// The filter being typed; in force with every key, so that its effect shows.
    Filter {
        /// The query.
        line: LineEdit,
        /// The filter before, for Esc.
        before: String,
    },
    /// A prompt being typed; Enter runs it.
    Prompt {
        /// The prompt, possibly of several lines.
        line: LineEdit,
    },
    /// A turn being typed; Enter says it.
    Turn {
        /// The turn, possibly of several lines.
        line: LineEdit,
        /// Why it was refused.
        error: Option<String>,
        /// The engine has it and has not answered yet.
        sent: bool,
    },
    /// Themes, the selected one in force as a preview.
    Themes {
        /// Index into [`super::App::themes`].
        selected: usize,
        /// The theme before, for Esc.
        before: String,
    },
    /// What can be exported.
    Export {
        /// Index into [`ExportKind::ALL`].
        selected: usize,
    },
    /// Bookmarked steps.
    Bookmarks {
        /// Index among [`super::App::bookmarks`].
        selected: usize,
    },
    /// A question with yes or no: leave although a recording is being written?
    ConfirmQuit,
    /// Something went wrong in another thread; the view behind it stays usable after Esc.
    Fault {
        /// One line.
        message: String,
    },
}

impl Overlay {
    /// Title of its frame.
    pub const fn title(&self) -> &'static str {
        match self {
            Self::Help { .. } => "help",
            Self::Params => "parameters",
            Self::Filter { .. } => "filter",
            Self::Prompt { .. } => "prompt",
            Self::Turn { .. } => "turn",
            Self::Themes { .. } => "theme",
            Self::Export { .. } => "export",
            Self::Bookmarks { .. } => "bookmarks",
            Self::ConfirmQuit => "quit?",
            Self::Fault { .. } => "fault",
        }
    }

    /// The line being typed, where there is one.
    pub const fn line(&self) -> Option<&LineEdit> {
        match self {
            Self::Help { query: line, .. }
            | Self::Filter { line, .. }
            | Self::Prompt { line }
            | Self::Turn { line, .. } => Some(line),
            _ => None,
        }
    }

    pub(super) const fn line_mut(&mut self) -> Option<&mut LineEdit> {
        match self {
            Self::Help { query: line, .. }
            | Self::Filter { line, .. }
            | Self::Prompt { line }
            | Self::Turn { line, .. } => Some(line),
            _ => None,
        }
    }
}

/// What can be made of the present screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportKind {
    /// A picture.
    Svg,
    /// Text with colours.
    Ansi,
    /// Plain text.
    Text,
    /// The facts of the view.
    Json,
}

impl ExportKind {
    /// All of them in menu order.
    pub const ALL: [Self; 4] = [Self::Svg, Self::Ansi, Self::Text, Self::Json];

    /// Name, as in `--format`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Svg => "svg",
            Self::Ansi => "ansi",
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    /// One line about it.
    pub const fn doc(self) -> &'static str {
        match self {
            Self::Svg => "this screen as a picture",
            Self::Ansi => "this screen as text with colours",
            Self::Text => "this screen as plain text",
            Self::Json => "the facts of this view at this step",
        }
    }
}

/// A row of the bookmark list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookmarkRow {
    /// Bookmarked step.
    pub step: StepId,
    /// What happened in it; one line.
    pub what: String,
}
