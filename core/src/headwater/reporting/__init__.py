"""Reports: panels in, one HTML page that works offline out."""

from headwater.reporting.page import write_page
from headwater.reporting.panels import Figure, Images, Panel, Svg, Table, Text, Video, curves, heatmap

__all__ = ["Figure", "Images", "Panel", "Svg", "Table", "Text", "Video", "curves", "heatmap", "write_page"]
