"""CutPaste (Li et al. 2021), with or without SSPCAB (Ristea et al. 2022): learns from defects that it makes."""
