// The strip under the player: a line at the moment that is playing, and a jump to the moment that is clicked.
(() => {
  const player = () => document.querySelector("#vb2-clip video");
  const length = (rows) => Number(rows.closest(".vb2-strip").dataset.seconds) || player()?.duration;
  const place = (clientX, rows) => {
    const box = rows.getBoundingClientRect();
    return Math.min(1, Math.max(0, (clientX - box.left) / box.width));
  };
  const follow = () => {
    const video = player();
    for (const rows of document.querySelectorAll(".vb2-rows")) {
      const part = video ? Math.min(1, video.currentTime / length(rows)) : 0;
      rows.querySelector(".vb2-now").style.left = `${100 * (part || 0)}%`;
    }
  };
  for (const event of ["timeupdate", "seeking"]) document.addEventListener(event, follow, true);
  document.addEventListener("click", (event) => {
    const rows = event.target.closest?.(".vb2-rows");
    if (rows && player()) player().currentTime = place(event.clientX, rows) * length(rows);
  });
})();
