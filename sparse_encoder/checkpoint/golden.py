"""Texts whose vectors an artifact carries, so that whoever serves it can see that it computes the same."""

#: f32 kernels of other runtimes differ in the last bits; after log1p by far less than this.
GOLDEN_TOLERANCE = 2e-3

GOLDEN_TEXTS = (
    "손해배상",
    "인공지능",
    "당뇨병 치료 방법",
    "부동산 임대차 계약 해지",
    "전세 보증금을 돌려받지 못하면 어떻게 해야 하나요?",
    "혈압이 높을 때 피해야 하는 음식",
    "회사가 퇴직금을 늦게 지급하면 지연 이자를 받을 수 있다.",
    "2024년부터 달라지는 육아휴직 급여 신청 절차",
    "서울에서 부산까지 KTX로 두 시간 반이 걸린다.",
    "김치를 담글 때는 배추를 소금물에 절인 뒤 고춧가루와 마늘, 젓갈로 만든 양념을 고루 바른다.",
    "계약을 해제한 당사자는 상대방에게 원상회복을 청구할 수 있고, 손해가 있으면 그 배상도 함께 구할 수 있다.",
    "machine learning으로 한국어 검색 품질을 높이는 방법",
    "비타민 D가 부족하면 뼈가 약해지고 쉽게 피로를 느낀다.",
    "환율이 오르면 수입 물가가 상승하여 소비자 부담이 커진다.",
)
