// The page: every part is wired once, then the service is asked how it is.
//
//   intake  -> images | series   files come in, a run begins
//   images  -> batches -> api    requests the service accepts, some at a time
//   series  -> chart, window     one recording, the window that is looked at
//   rate, viewer, exports        what hears of results and of the false-alarm rate
//   status, models, key          the service itself

import { wireExports } from "./exports.js";
import { wireImages } from "./images.js";
import { wireIntake } from "./intake.js";
import { wireKey } from "./key.js";
import { wireModels } from "./models.js";
import { wireRate } from "./rate.js";
import { wireSeries } from "./series.js";
import { watchService } from "./status.js";
import { wireViewer } from "./viewer.js";

wireKey();
wireModels();
wireIntake();
wireImages();
wireViewer();
wireSeries();
wireRate();
wireExports();
watchService();
