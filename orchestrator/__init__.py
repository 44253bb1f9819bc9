"""The sandbox side of tiltyard: hosts, boxes, repositories, tools, graders and the store."""
