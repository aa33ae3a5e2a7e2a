// What a page of a run does once it is there.
drawCurves();
if (one("monitor")) new Monitor(one("monitor"));
if (one("answers")) new Samples(one("answers"));
